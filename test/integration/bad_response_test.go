//go:build integration

package integration

import (
	"context"
	"testing"

	"github.com/google/uuid"
	amqp "github.com/rabbitmq/amqp091-go"

	"rabbitmq-rpc/pkg/amqpx"
	"rabbitmq-rpc/test/internal/rig"
)

// rawServer consumes the request queue without the library. The test responds to the requests.
func rawServer(t *testing.T, r *rig.Rig) <-chan amqp.Delivery {
	t.Helper()
	r.Declare(true, nil)
	requests, err := r.Raw().Consume(r.Queue.Name, "", true, false, false, false, nil)
	if err != nil {
		t.Fatal(err)
	}
	return requests
}

func TestResponsesThatNoServerOfOursSends(t *testing.T) {
	t.Parallel()
	r := rig.New(t)
	requests := rawServer(t, r)
	client := r.Ready()
	for _, c := range []struct {
		name    string
		headers amqp.Table
		body    string
		code    amqpx.Code // of the error; none for success
		outcome amqpx.Outcome
		text    string
	}{
		{"only a body", nil, "x", "", amqpx.Ran, "x"},
		{"foreign headers", amqp.Table{"a": nested(30), "rpc-later": nil}, "x", "", amqpx.Ran, "x"},
		{"headers that cannot be read", amqp.Table{"a": nested(60)}, "x", amqpx.CodeDataLoss, amqpx.MayHaveRun, "the response's headers cannot be read"},
		{"timing of the wrong type", amqp.Table{"rpc-queue-us": "?", "rpc-handler-us": amqp.Table{}}, "x", "", amqpx.Ran, "x"},
		{"code", amqp.Table{"rpc-code": "aborted"}, "why", amqpx.CodeAborted, amqpx.MayHaveRun, "why"},
		{"text in the header only", amqp.Table{"rpc-code": "aborted", "rpc-message": "why"}, "", amqpx.CodeAborted, amqpx.MayHaveRun, "why"},
		{"unknown code", amqp.Table{"rpc-code": "teapot"}, "why", amqpx.CodeUnknown, amqpx.MayHaveRun, "why"},
		{"code of the wrong type", amqp.Table{"rpc-code": int32(7), "rpc-message": true}, "", amqpx.CodeUnknown, amqpx.MayHaveRun, ""},
		{"code of nothing", amqp.Table{"rpc-code": nil}, "", amqpx.CodeUnknown, amqpx.MayHaveRun, ""},
		{"unimplemented", amqp.Table{"rpc-code": "unimplemented"}, "", amqpx.CodeUnimplemented, amqpx.MayHaveRun, ""},
		{"ran", amqp.Table{"rpc-code": "aborted", "rpc-ran": true}, "", amqpx.CodeAborted, amqpx.Ran, ""},
		{"did not run", amqp.Table{"rpc-code": "aborted", "rpc-ran": false}, "", amqpx.CodeAborted, amqpx.DidNotRun, ""},
		{"ran of the wrong type", amqp.Table{"rpc-code": "internal", "rpc-ran": "no"}, "", amqpx.CodeInternal, amqpx.MayHaveRun, ""},
	} {
		call := begin(rig.Patience(t), client, "b", nil)
		request := rig.Recv(t, requests, "the request")
		r.Publish(request.ReplyTo, amqp.Publishing{CorrelationId: request.CorrelationId, Headers: c.headers, Body: []byte(c.body)})
		got := rig.Recv(t, call, "the call to settle")
		if c.code == "" {
			if got.err != nil || string(got.response) != c.text {
				t.Errorf("%s: got %q, %v", c.name, got.response, got.err)
			}
			continue
		}
		want{code: c.code, outcome: c.outcome, remote: true}.check(t, got.err)
		if text := message(got.err); text != c.text {
			t.Errorf("%s: message %q, want %q", c.name, text, c.text)
		}
	}
}

func TestResponsesForNobody(t *testing.T) {
	t.Parallel()
	r := rig.New(t)
	requests := rawServer(t, r)
	client := r.Ready()

	ctx, giveUp := context.WithCancel(rig.Patience(t))
	abandoned := begin(ctx, client, "b", nil)
	late := rig.Recv(t, requests, "the request")
	giveUp()
	rig.Recv(t, abandoned, "the caller to give up")
	call := begin(rig.Patience(t), client, "b", nil)
	request := rig.Recv(t, requests, "the request")

	for _, id := range []string{late.CorrelationId, "", uuid.NewString(), "\xff\x00"} {
		r.Publish(request.ReplyTo, amqp.Publishing{CorrelationId: id, Body: []byte("stray")})
	}
	for _, body := range []string{"first", "second", "third"} {
		r.Publish(request.ReplyTo, amqp.Publishing{CorrelationId: request.CorrelationId, Body: []byte(body)})
	}
	if got := rig.Recv(t, call, "the response"); got.err != nil || string(got.response) != "first" {
		t.Errorf("got %q, %v, want the first response", got.response, got.err)
	}
	counted := amqpx.ClientStats{OK: 1, Failed: 1, Late: 1, Duplicates: 2, Unknown: 3}
	rig.Eventually(t, "every stray answer is counted", func() bool { return client.Stats() == counted })
}
