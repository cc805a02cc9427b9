package amqpx

import (
	"testing"
	"testing/synctest"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"rabbitmq-rpc/pkg/amqpx/internal/wire"
)

// If a server acknowledges a request and sends no response, an idempotent call is sent again
// after the attempt timeout.
func TestSwallowedCallIsSentAgain(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := startScripted(t, each(silent, silent, runs), WithAttemptTimeout(time.Second))
		got := <-goCall(r.client, within(t, time.Minute), "m", []byte("x"), Idempotent())
		wantResponse(t, got, "x")
		if got.took < 3*time.Second || got.took > 4*time.Second {
			t.Errorf("took %v, want one second and two", got.took)
		}
		sent := r.requests()
		wantSame(t, "requests", len(sent), 3)
		for i, msg := range sent {
			wantSame(t, "marked as sent again", msg.Headers[wire.HeaderResent] == true, i > 0)
			wantSame(t, "correlation id", msg.CorrelationId, sent[0].CorrelationId)
			wantSame(t, "idempotency key", msg.MessageId, sent[0].MessageId)
		}
		f := r.client.Go(within(t, time.Minute), "m", []byte("y"), Idempotent())
		wantResponse(t, resultOf(f), "y")
	})
}

func TestSwallowedFutureIsSentAgain(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := startScripted(t, each(silent, runs), WithAttemptTimeout(time.Second))
		got := resultOf(r.client.Go(within(t, time.Minute), "m", []byte("x"), Idempotent()))
		wantResponse(t, got, "x")
		if got.took > 2*time.Second {
			t.Errorf("took %v", got.took)
		}
	})
}

func TestAttemptTimeoutIsForIdempotentCalls(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := startScripted(t, silent, WithAttemptTimeout(time.Second))
		got := <-goCall(r.client, within(t, 20*time.Second), "m", nil)
		wantSame(t, "code", CodeOf(got.err), CodeDeadlineExceeded)
		wantSame(t, "took", got.took, 20*time.Second)
		wantSame(t, "requests", len(r.requests()), 1)
	})
}

// The response to an earlier attempt settles the call, and a later response is a duplicate.
func TestLateResponseOfAnEarlierAttemptCounts(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		responses := func(n int, d amqp.Delivery, send func(amqp.Publishing)) {
			after(2500*time.Millisecond, runs)(n, d, send)
		}
		r := startScripted(t, responses, WithAttemptTimeout(time.Second))
		got := <-goCall(r.client, within(t, time.Minute), "m", []byte("x"), Idempotent())
		wantResponse(t, got, "x")
		wantSame(t, "took", got.took, 2500*time.Millisecond)
		pass(10 * time.Second)
		wantSame(t, "requests", len(r.requests()), 2)
		wantSame(t, "duplicates", r.client.Stats().Duplicates, 1)
	})
}

func TestAttemptTimeoutIsValidated(t *testing.T) {
	t.Parallel()
	if _, err := NewClient(testURL, WithAttemptTimeout(-1)); err == nil {
		t.Error("a negative time limit was accepted")
	}
}
