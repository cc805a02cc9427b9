package amqpx

import (
	"context"
	"fmt"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"rabbitmq-rpc/pkg/amqpx/internal/brokertest"
	"rabbitmq-rpc/pkg/amqpx/internal/wire"
)

// sleepsForBody is a handler that sleeps for as many microseconds as the body says.
func sleepsForBody(_ context.Context, req *Request) ([]byte, error) {
	us, err := strconv.Atoi(string(req.Body))
	if err != nil {
		return nil, err
	}
	<-time.After(time.Duration(us) * time.Microsecond)
	return req.Body, nil
}

// sizesOfBatches returns the number of records in each batch with a content type.
func sizesOfBatches(t *testing.T, messages []brokertest.Sent, contentType string) (sizes []int) {
	t.Helper()
	for _, m := range messages {
		if m.Msg.ContentType != contentType {
			continue
		}
		records, err := wire.AppendRecords(nil, m.Msg.Body)
		if err != nil {
			t.Fatal(err)
		}
		sizes = append(sizes, len(records))
	}
	return sizes
}

// The responses of a batch travel together although their handlers end one after the other.
func TestResponsesToABatchTravelTogether(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := startBatching(t, handlers{"sleep": sleepsForBody})
		for i, done := range r.batchOf(16, "sleep") {
			wantResponse(t, <-done, fmt.Sprint(i))
		}
		sizes := sizesOfBatches(t, r.broker.MessagesTo(brokertest.RouteReplies), wire.ContentTypeResponses)
		wantSame(t, "batches of responses", fmt.Sprint(sizes), "[16]")
	})
}

// The calls that follow the responses of a batch travel together although their callers make
// them one after the other.
func TestCallsAfterABatchOfResponsesTravelTogether(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := startBatching(t, handlers{"m": echo})
		const callers = 16
		next := make(chan result, callers)
		for i, done := range r.batchOf(callers, "m") {
			go func() {
				first := <-done
				<-time.After(time.Duration(i) * time.Microsecond)
				body, err := r.client.Call(within(t, time.Minute), "m", first.response)
				next <- result{response: body, err: err}
			}()
		}
		for range callers {
			if got := <-next; got.err != nil {
				t.Error(got.err)
			}
		}
		sizes := sizesOfBatches(t, r.broker.MessagesTo(batchQueueName), wire.ContentTypeRequests)
		wantSame(t, "batches of calls", fmt.Sprint(sizes), "[16 16]")
	})
}

// A handler that does not end holds the responses to the other requests of its batch back for
// less than a millisecond.
func TestBlockedHandlerDelaysTheOtherResponsesLittle(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		free := make(chan struct{})
		r := startBatching(t, handlers{"m": func(_ context.Context, req *Request) ([]byte, error) {
			if string(req.Body) == "0" {
				<-free
			}
			return req.Body, nil
		}})
		waiting := r.batchOf(64, "m")
		for i, done := range waiting[1:] {
			got := <-done
			wantResponse(t, got, fmt.Sprint(i+1))
			if got.took >= time.Millisecond {
				t.Errorf("call %d took %v", i+1, got.took)
			}
		}
		select {
		case got := <-waiting[0]:
			t.Errorf("the blocked call has ended: %v", got)
		default:
		}
		close(free)
		wantResponse(t, <-waiting[0], "0")
	})
}

// The requests of a batch run on all workers at once.
func TestRequestsOfABatchRunAtOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := startBatching(t, handlers{"m": func(_ context.Context, req *Request) ([]byte, error) {
			<-time.After(time.Millisecond)
			return req.Body, nil
		}})
		for i, done := range r.batchOf(DefaultWorkers, "m") {
			got := <-done
			wantResponse(t, got, fmt.Sprint(i))
			if got.took >= 2*time.Millisecond {
				t.Errorf("call %d took %v", i, got.took)
			}
		}
	})
}

// Calls are not held back for callers that do not call again.
func TestCallsAreNotHeldBackForCallersThatStop(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := startBatching(t, handlers{"m": echo})
		for i, done := range r.batchOf(16, "m") {
			wantResponse(t, <-done, fmt.Sprint(i))
		}
		got := <-goCall(r.client, within(t, time.Minute), "m", []byte("next"))
		wantResponse(t, got, "next")
		if got.took >= time.Millisecond {
			t.Errorf("the next call took %v", got.took)
		}
	})
}
