//go:build integration

package integration

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"os"
	"strings"
	"testing"

	"github.com/google/uuid"
	amqp "github.com/rabbitmq/amqp091-go"

	"rabbitmq-rpc/pkg/amqpx"
	"rabbitmq-rpc/test/internal/rig"
)

// secured returns the URL of the broker's TLS listener and an option that trusts its
// certificate.
func secured(t *testing.T) (url string, trust amqpx.Option) {
	t.Helper()
	url, caFile := rig.TLS(t)
	pem, err := os.ReadFile(caFile)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		t.Fatalf("%s holds no certificate", caFile)
	}
	return url, amqpx.WithTLS(&tls.Config{MinVersion: tls.VersionTLS12, RootCAs: pool})
}

// upper returns the URL with its scheme in upper case.
func upper(url string) string {
	scheme, rest, _ := strings.Cut(url, ":")
	return strings.ToUpper(scheme) + ":" + rest
}

// TestHeadersThatCannotBeRead sends headers that amqp091-go cannot read over every kind of
// connection. They must harm neither the receiving server nor the receiving client.
func TestHeadersThatCannotBeRead(t *testing.T) {
	t.Parallel()
	secure, trust := secured(t)
	for name, url := range map[string]string{
		"TLS": secure, "TLS in upper case": upper(secure), "plain in upper case": upper(rig.URL()),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := rig.New(t)
			server := r.ServeAt(url, rig.Methods{"echo": echo}, trust)
			client := r.ClientAt(url, trust)
			rig.Connected(t, client)
			poison := []amqp.Table{nested(40), many(10_000)}
			inbox, pings := r.Inbox(), r.Inbox()
			for _, headers := range poison {
				for _, queue := range []string{r.Queue.Name, r.Queue.Name + ".batch", r.Queue.Name + ".retry"} {
					r.Publish(queue, amqp.Publishing{AppId: "echo", CorrelationId: uuid.NewString(), ReplyTo: inbox.Name, Headers: headers})
					if got := inbox.Next(); got.Headers["rpc-code"] != string(amqpx.CodeInvalidArgument) {
						t.Errorf("answer %q with %v", got.Body, got.Headers)
					}
				}
				toAll(t, r, amqp.Publishing{AppId: "ping", CorrelationId: "1", ReplyTo: pings.Name, Headers: headers})
				pings.Next()
			}
			body := bytes.Repeat([]byte("x"), 300<<10)
			if got := rig.Call(t, client, "echo", body); !bytes.Equal(got, body) {
				t.Errorf("a response of %d bytes, want %d", len(got), len(body))
			}
			for _, headers := range poison {
				poisonResponse(t, url, trust, headers)
			}
			if s, c := server.Stats().Reconnects, client.Stats().Reconnects; s != 0 || c != 0 {
				t.Errorf("%d reconnects of the server, %d of the client", s, c)
			}
			openLane(t, client)
		})
	}
}

// toAll publishes to the exchange of the control plane.
func toAll(t *testing.T, r *rig.Rig, msg amqp.Publishing) {
	t.Helper()
	ch := r.Raw()
	if err := ch.Publish(r.Queue.Name+".control", "", false, false, msg); err != nil {
		t.Fatal(err)
	}
	if err := ch.Close(); err != nil {
		t.Fatal(err)
	}
}

// poisonResponse responds to a call with unreadable headers, and to the next call with a good
// response.
func poisonResponse(t *testing.T, url string, trust amqpx.Option, headers amqp.Table) {
	t.Helper()
	r := rig.New(t)
	requests := rawServer(t, r)
	client := r.ClientAt(url, trust)
	rig.Connected(t, client)
	for _, h := range []amqp.Table{headers, nil} {
		call := begin(rig.Patience(t), client, "b", nil)
		request := rig.Recv(t, requests, "the request")
		r.Publish(request.ReplyTo, amqp.Publishing{CorrelationId: request.CorrelationId, Headers: h, Body: []byte("x")})
		got := rig.Recv(t, call, "the call to settle")
		if h != nil {
			want{code: amqpx.CodeDataLoss, outcome: amqpx.MayHaveRun, remote: true}.check(t, got.err)
		} else if got.err != nil || string(got.response) != "x" {
			t.Errorf("got %q, %v", got.response, got.err)
		}
	}
	if n := client.Stats().Reconnects; n != 0 {
		t.Errorf("%d reconnects", n)
	}
}

// TestTLSNeedsTrust: a client sends no password to a broker with an untrusted certificate.
func TestTLSNeedsTrust(t *testing.T) {
	t.Parallel()
	url, _ := secured(t)
	r := rig.New(t)
	client := r.ClientAt(url)
	rig.Eventually(t, "the client names the certificate", func() bool {
		err := client.Status().Err
		return err != nil && strings.Contains(err.Error(), "TLS certificate")
	})
	_, caFile := rig.TLS(t)
	rig.Connected(t, r.ClientAt(url+"?cacertfile="+caFile))
}
