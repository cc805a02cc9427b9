//go:build integration

package integration

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"

	amqp "github.com/rabbitmq/amqp091-go"

	"rabbitmq-rpc/pkg/amqpx"
	"rabbitmq-rpc/test/internal/rig"
)

const mebibyte = 1 << 20

// TestRequestBeyondTheLimitIsNotRead: a request beyond the size limit is refused unread in
// every queue of a server.
func TestRequestBeyondTheLimitIsNotRead(t *testing.T) {
	t.Parallel()
	r := rig.New(t)
	inbox := r.Inbox()
	var runs atomic.Int64
	server := r.Serve(rig.Methods{
		"b": letter,
		"run": func(context.Context, *amqpx.Request) ([]byte, error) {
			runs.Add(1)
			return nil, nil
		},
	}, amqpx.WithMaxMessageSize(mebibyte))
	body := make([]byte, 3*mebibyte)
	want := fmt.Sprintf("%v: body of %d bytes, limit %d", amqpx.ErrTooLarge, len(body), mebibyte)
	for _, queue := range []string{"", ".batch", ".retry"} {
		for i := range 5 {
			id := fmt.Sprint(queue, i)
			r.Publish(r.Queue.Name+queue, amqp.Publishing{
				AppId: "run", CorrelationId: id, ReplyTo: inbox.Name, Body: body, Headers: amqp.Table{"a": "b"},
			})
			got := inbox.Next()
			if code := got.Headers["rpc-code"]; code != string(amqpx.CodeInvalidArgument) || got.CorrelationId != id || string(got.Body) != want {
				t.Errorf("%q got %v: %s", id, code, got.Body)
			}
			if ran := got.Headers["rpc-ran"]; ran != false {
				t.Errorf("%q ran: %v", id, ran)
			}
		}
	}
	toAll(t, r, amqp.Publishing{AppId: "ping", CorrelationId: "1", ReplyTo: inbox.Name, Body: body})
	inbox.Next() // the server's response
	if st := server.Stats(); st.TooLarge != 15 || runs.Load() != 0 {
		t.Errorf("%d too large, %d executions", st.TooLarge, runs.Load())
	}
	serversWell(t, r, server)
	rig.Eventually(t, "no bytes are in hand", func() bool { return server.Stats().BytesInHand == 0 })
}

// TestOneWayRequestBeyondTheLimit: a dead-letter policy keeps a one-way request beyond the
// limit, because no caller can receive an error.
func TestOneWayRequestBeyondTheLimit(t *testing.T) {
	t.Parallel()
	r := rig.New(t)
	inbox := r.Inbox()
	r.Declare(true, amqp.Table{"x-dead-letter-exchange": "", "x-dead-letter-routing-key": inbox.Name})
	server := r.Serve(rig.Methods{"b": letter}, amqpx.WithMaxMessageSize(mebibyte))
	body := make([]byte, 3*mebibyte)
	r.Request(amqp.Publishing{AppId: "b", MessageId: "one way", Body: body})
	if got := inbox.Next(); got.MessageId != "one way" || len(got.Body) != len(body) || got.Headers["x-death"] == nil {
		t.Errorf("dead letter %q of %d bytes with %v", got.MessageId, len(got.Body), got.Headers)
	}
	if n := server.Stats().TooLarge; n != 1 {
		t.Errorf("%d too large", n)
	}
	serversWell(t, r, server)
}

func TestResponseBeyondTheLimitIsNotRead(t *testing.T) {
	t.Parallel()
	r := rig.New(t)
	requests := rawServer(t, r)
	client := r.Ready(amqpx.WithMaxMessageSize(mebibyte))
	for _, size := range []int{3 * mebibyte, mebibyte} {
		call := begin(rig.Patience(t), client, "b", nil)
		request := rig.Recv(t, requests, "the request")
		r.Publish(request.ReplyTo, amqp.Publishing{CorrelationId: request.CorrelationId, Body: make([]byte, size)})
		got := rig.Recv(t, call, "the call to settle")
		if size == mebibyte {
			if got.err != nil || len(got.response) != size {
				t.Errorf("%d bytes, %v", len(got.response), got.err)
			}
			continue
		}
		want{code: amqpx.CodeResourceExhausted, outcome: amqpx.Ran, is: []error{amqpx.ErrTooLarge}}.check(t, got.err)
		if text := message(got.err); !strings.Contains(text, fmt.Sprintf("body of %d bytes, limit %d", size, mebibyte)) {
			t.Errorf("message %q", text)
		}
	}
	if n := client.Stats().Reconnects; n != 0 {
		t.Errorf("%d reconnects", n)
	}
}

// TestMoreRequestsThanThereIsRoomFor: large requests wait in the queue while small requests
// continue.
func TestMoreRequestsThanThereIsRoomFor(t *testing.T) {
	t.Parallel()
	for _, kind := range []amqpx.QueueType{amqpx.QueueClassic, amqpx.QueueQuorum} {
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel()
			const (
				calls = 24
				size  = mebibyte / 4
				room  = mebibyte
			)
			r := rig.New(t)
			r.Queue.Type = kind
			var most atomic.Int64
			var server *rig.Server
			ready := make(chan struct{})
			server = r.Serve(rig.Methods{
				"echo": echo,
				"sum": func(_ context.Context, req *amqpx.Request) ([]byte, error) {
					<-ready
					most.Store(max(most.Load(), server.Stats().BytesInHand))
					return fmt.Append(nil, bytes.Count(req.Body, []byte("x"))), nil
				},
			}, amqpx.WithMaxMessageSize(size), amqpx.WithMaxBytesInHand(room))
			inbox := r.Inbox()
			for i := range calls {
				r.Request(amqp.Publishing{AppId: "sum", CorrelationId: fmt.Sprint(i), ReplyTo: inbox.Name, Body: bytes.Repeat([]byte("x"), size)})
			}
			rig.Eventually(t, "requests find no room", func() bool { return server.Stats().Deferred > 0 })
			client := r.Ready()
			if got := rig.Call(t, client, "echo", []byte("small")); string(got) != "small" {
				t.Errorf("got %q", got)
			}
			close(ready)
			responses := map[string]int{}
			for range calls {
				got := inbox.Next()
				if responses[got.CorrelationId]++; string(got.Body) != fmt.Sprint(size) {
					t.Errorf("answer %q with %v", got.Body, got.Headers)
				}
			}
			if len(responses) != calls {
				t.Errorf("%d calls were answered", len(responses))
			}
			if n := most.Load(); n > room+size { // one from the retry queue may be in addition
				t.Errorf("%d bytes were in hand", n)
			}
			if n := server.Stats().Dead; n != 0 {
				t.Errorf("%d dead letters", n)
			}
			rig.Eventually(t, "no bytes are in hand", func() bool { return server.Stats().BytesInHand == 0 && server.Stats().InFlight == 0 })
			if err := server.Drain(); err != nil {
				t.Errorf("drain: %v", err)
			}
			if left := r.Inspect().Messages; left != 0 {
				t.Errorf("%d requests are left", left)
			}
		})
	}
}
