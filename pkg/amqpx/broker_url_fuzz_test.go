package amqpx

import (
	"context"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"rabbitmq-rpc/pkg/amqpx/internal/brokertest"
	"rabbitmq-rpc/pkg/amqpx/internal/transport"
)

// FuzzSecret puts a secret into every form of a list of URLs. The secret must not show in an
// error of a constructor or of an attempt to connect, in a status or in the log, except in the
// place of the user, the host, or a virtual host in a URL with a password.
func FuzzSecret(f *testing.F) {
	for form := range misspelled() {
		before, after, _ := strings.Cut(form, "$x")
		f.Add(before, strings.ReplaceAll(after, "$x", marker))
	}
	for _, form := range []string{"amqp://u:$x@127.0.0.1:1/v", "amqps://u:$x@127.0.0.1:1//?heartbeat=5", "amqp://h/,amqp://u:p$x@[::1]:1/"} {
		before, after, _ := strings.Cut(form, "$x")
		f.Add(before, after)
	}
	f.Fuzz(func(t *testing.T, before, after string) {
		list := before + marker + after
		urls, err := ParseURLs(list)
		_, clientErr := newClientConfig(list, nil)
		_, serverErr := newServerConfig(list, nil)
		if (err == nil) != (clientErr == nil) || (err == nil) != (serverErr == nil) {
			t.Errorf("%q is refused by one and not by another: %v, %v, %v", list, err, clientErr, serverErr)
		}
		shown := fmt.Sprint(err, clientErr, serverErr, urls)
		for _, u := range urls {
			if strings.Contains(u.user, marker) || strings.Contains(u.host, marker) || strings.Contains(u.vhost, marker) {
				return // here the secret cannot be told from a name
			}
			shown += shownOf(t, u)
		}
		if strings.Contains(shown, marker) {
			t.Errorf("%q is shown: %s", list, shown)
		}
	})
}

// shownOf returns all texts about a URL that failing attempts to connect show.
func shownOf(t *testing.T, u BrokerURL) string {
	t.Helper()
	target := u.target()
	uri, err := amqp.ParseURI(target.URL)
	if err != nil {
		t.Fatalf("a URL that was accepted cannot be read: %v", err)
	}
	core, logs := observer.New(zap.DebugLevel)
	cfg := defaultConfig(defaultLinkConfig(""))
	cfg.logger = zap.New(core)
	cfg.urls = []BrokerURL{u}
	causes := []error{
		&net.DNSError{Err: "no such host", Name: u.Host(), IsNotFound: true},
		&amqp.Error{Code: amqp.NotAllowed, Reason: "NOT_ALLOWED - vhost " + uri.Vhost + " not found"},
		&amqp.Error{Code: amqp.AccessRefused, Reason: "ACCESS_REFUSED - access to vhost '" + uri.Vhost + "' refused for user '" + uri.Username + "'"},
		amqp.ErrCredentials, amqp.ErrSASL, context.DeadlineExceeded,
	}
	var dialers []transport.Dialer
	for _, cause := range causes {
		b := brokertest.New()
		b.OnDial = func(context.Context, string, string) error { return cause }
		dialers = append(dialers, b)
	}
	if uri.Host == "127.0.0.1" && uri.Port == 1 { // no program listens there
		dialers = append(dialers, transport.NetDialer{Heartbeat: time.Second, WriteTimeout: time.Second})
	}
	shown := []any{u, target.Address, target.Vhost}
	for _, cfg.dialer = range dialers {
		ctx, stop := context.WithCancel(t.Context())
		board := onceConnected{stop: stop}
		transport.NewSupervisor(cfg.sessions("test", true, &board, nil)).Run(ctx)
		shown = append(shown, board.get(), board.get().Err)
	}
	var text strings.Builder
	for _, line := range logs.All() {
		fmt.Fprintln(&text, line.Message, line.ContextMap())
	}
	fmt.Fprintln(&text, shown...)
	return text.String()
}

// onceConnected is a status that stops its supervisor after the first attempt to connect.
type onceConnected struct {
	statusBoard

	stop context.CancelFunc
}

func (o *onceConnected) OnFault(err error, kind FaultKind) {
	o.statusBoard.OnFault(err, kind)
	o.stop()
}

func FuzzURL(f *testing.F) {
	for _, u := range append(badURLs(), testURL, "amqps://app:s%40cret@[::1]:1/%2f", "amqp://:@") {
		f.Add(u)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		_, err := newClientConfig(raw, nil)
		if err != nil {
			return
		}
		for u := range strings.SplitSeq(raw, ",") {
			if strings.TrimSpace(u) == "" {
				continue
			}
			if target := testTarget(strings.TrimSpace(u)); target.Address == "?" {
				t.Errorf("a URL that was accepted cannot be read: %q", u)
			}
		}
	})
}
