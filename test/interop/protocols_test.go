//go:build integration

package interop

import (
	"bufio"
	"context"
	"fmt"
	"maps"
	"net"
	"net/url"
	"strings"
	"testing"
	"time"

	amqp1 "github.com/Azure/go-amqp"
	"github.com/google/uuid"

	"rabbitmq-rpc/pkg/amqpx"
	"rabbitmq-rpc/test/internal/rig"
)

// response is the response received over another protocol.
type response struct {
	body, correlationID, code string
}

// request is a request over another protocol. If app is empty, the method is sent in the
// header rpc-method.
type request struct {
	app, method string
	headers     map[string]string
}

// callsOfOtherProtocols returns the calls made over each protocol. Empty fields of the
// response are not compared, except for the code.
func callsOfOtherProtocols() map[string]struct {
	request
	want response
} {
	return map[string]struct {
		request
		want response
	}{
		"app_id":                    {request{app: "b"}, response{body: "b"}},
		"rpc-method":                {request{method: "a"}, response{body: "a"}},
		"numbers and words as text": {request{app: "b", headers: map[string]string{"rpc-timeout-ms": "20000", "rpc-idempotent": "true"}}, response{body: "b"}},
		"unknown method":            {request{app: "no such"}, response{code: string(amqpx.CodeUnimplemented)}},
	}
}

// TestStompClientCallsOurServer: a STOMP program can call this project's server and read the
// code of an error in the headers.
func TestStompClientCallsOurServer(t *testing.T) {
	t.Parallel()
	r := rig.New(t)
	r.Serve(letters())
	conn := stompDial(t, r)
	for name, c := range callsOfOtherProtocols() {
		t.Run(name, func(t *testing.T) {
			id := uuid.NewString()
			headers := map[string]string{
				"destination": "/amq/queue/" + r.Queue.Name, "reply-to": "/temp-queue/responses", "correlation-id": id,
			}
			if c.app != "" {
				headers["app-id"] = c.app
			}
			if c.method != "" {
				headers["rpc-method"] = c.method
			}
			maps.Copy(headers, c.headers)
			conn.send("SEND", headers, "argument")
			command, got, body := conn.receive()
			if command != "MESSAGE" {
				t.Fatalf("got the frame %s: %v %s", command, got, body)
			}
			c.want.check(t, id, response{body: body, correlationID: got["correlation-id"], code: got["rpc-code"]})
		})
	}
}

// TestAMQP10ClientCallsOurServer: an AMQP 1.0 program can call this project's server through
// RabbitMQ 4. The plugin of RabbitMQ 3 forwards neither group-id nor application properties,
// so no request can name its method.
func TestAMQP10ClientCallsOurServer(t *testing.T) {
	t.Parallel()
	r := rig.New(t)
	r.Serve(letters())
	inbox := r.Queue.Name + ".responses"
	if _, err := r.Raw().QueueDeclare(inbox, true, false, false, false, nil); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = r.Raw().QueueDelete(inbox, false, false, false) })
	requests, responses := "/queues/"+r.Queue.Name, "/queues/"+inbox
	if rig.Major() == "3" {
		requests, responses = "/amq/queue/"+r.Queue.Name, "/amq/queue/"+inbox
	}
	ctx := rig.Patience(t)
	session := amqp1Dial(ctx, t, r)
	sender, err := session.NewSender(ctx, requests, nil)
	if err != nil {
		t.Fatal(err)
	}
	receiver, err := session.NewReceiver(ctx, responses, nil)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range callsOfOtherProtocols() {
		t.Run(name, func(t *testing.T) {
			id := uuid.NewString()
			msg := amqp1.NewMessage([]byte("argument"))
			msg.Properties = &amqp1.MessageProperties{ReplyTo: &inbox, CorrelationID: id}
			msg.ApplicationProperties = map[string]any{}
			if c.app != "" {
				msg.Properties.GroupID = &c.app
			}
			if c.method != "" {
				msg.ApplicationProperties["rpc-method"] = c.method
			}
			for name, value := range c.headers {
				msg.ApplicationProperties[name] = value
			}
			ctx := rig.Patience(t)
			if err := sender.Send(ctx, msg, nil); err != nil {
				t.Fatal(err)
			}
			got, err := receiver.Receive(ctx, nil)
			if err != nil {
				t.Fatal(err)
			}
			if err := receiver.AcceptMessage(ctx, got); err != nil {
				t.Fatal(err)
			}
			if rig.Major() == "3" {
				c.want = response{body: "property app_id is empty: it names the method"}
			}
			code, _ := got.ApplicationProperties["rpc-code"].(string)
			c.want.check(t, id, response{body: string(got.GetData()), correlationID: fmt.Sprint(got.Properties.CorrelationID), code: code})
		})
	}
}

func (want response) check(t *testing.T, id string, got response) {
	t.Helper()
	if got.correlationID != id || got.code != want.code || (want.body != "" && got.body != want.body) {
		t.Errorf("got %+v, want %+v for %s", got, want, id)
	}
}

func amqp1Dial(ctx context.Context, t *testing.T, r *rig.Rig) *amqp1.Session {
	t.Helper()
	u, err := url.Parse(r.URL)
	if err != nil {
		t.Fatal(err)
	}
	password, _ := u.User.Password()
	conn, err := amqp1.Dial(ctx, "amqp://"+u.Host, &amqp1.ConnOptions{SASLType: amqp1.SASLTypePlain(u.User.Username(), password)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	session, err := conn.NewSession(ctx, nil)
	if err != nil {
		t.Fatal(err)
	}
	return session
}

// stomp is a connection for STOMP 1.2, a text protocol. A frame is a command, headers, and a
// body terminated by a zero byte.
type stomp struct {
	t    *testing.T
	conn net.Conn
	in   *bufio.Reader
}

func stompDial(t *testing.T, r *rig.Rig) *stomp {
	t.Helper()
	u, err := url.Parse(r.URL)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := new(net.Dialer).DialContext(rig.Patience(t), "tcp", rig.Stomp(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	s := &stomp{t: t, conn: conn, in: bufio.NewReader(conn)}
	password, _ := u.User.Password()
	s.send("CONNECT", map[string]string{"accept-version": "1.2", "host": "/", "login": u.User.Username(), "passcode": password}, "")
	if command, headers, body := s.receive(); command != "CONNECTED" {
		t.Fatalf("got the frame %s: %v %s", command, headers, body)
	}
	return s
}

func (s *stomp) send(command string, headers map[string]string, body string) {
	s.t.Helper()
	var frame strings.Builder
	frame.WriteString(command + "\n")
	for name, value := range headers {
		frame.WriteString(name + ":" + value + "\n")
	}
	frame.WriteString("\n" + body + "\x00")
	if _, err := s.conn.Write([]byte(frame.String())); err != nil {
		s.t.Fatal(err)
	}
}

func (s *stomp) receive() (command string, headers map[string]string, body string) {
	s.t.Helper()
	frame, err := s.in.ReadString(0)
	if err != nil {
		s.t.Fatal(err)
	}
	head, body, _ := strings.Cut(strings.TrimLeft(strings.TrimSuffix(frame, "\x00"), "\r\n"), "\n\n")
	lines := strings.Split(head, "\n")
	headers = make(map[string]string, len(lines))
	for _, line := range lines[1:] {
		name, value, _ := strings.Cut(line, ":")
		headers[name] = value
	}
	return lines[0], headers, body
}
