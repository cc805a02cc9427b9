package amqpx

import (
	"testing"
	"testing/synctest"
	"time"

	"rabbitmq-rpc/pkg/amqpx/internal/brokertest"
	"rabbitmq-rpc/pkg/amqpx/internal/wire"
	"rabbitmq-rpc/pkg/amqpx/internal/wire/wiretest"
)

func TestOptionsOfAMethodComeBetweenTheClientsAndTheCalls(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		header := func(text string) CallOption { return WithHeader(map[string]any{text: text, "last": text}) }
		r := startScripted(t, runs, WithMethod("m", header("method"), Idempotent()),
			WithCallOptions(header("client")), WithMethod("m", header("more")))
		for _, c := range []struct {
			method     string
			opts       []CallOption
			last       string
			headers    int
			idempotent bool
		}{
			{"m", nil, "more", 4, true},
			{"m", []CallOption{header("call")}, "call", 5, true},
			{"other", nil, "client", 2, false},
			{"other", []CallOption{header("call")}, "call", 3, false},
		} {
			wantResponse(t, <-goCall(r.client, within(t, time.Minute), c.method, nil, c.opts...), "")
			sent := r.requests()
			var in wire.Request
			if err := in.Decode(wiretest.Delivered(sent[len(sent)-1]), ""); err != nil {
				t.Fatal(err)
			}
			wantSame(t, "last", in.Header["last"], any(c.last))
			wantSame(t, "headers", len(in.Header), c.headers)
			wantSame(t, "idempotent", in.Idempotent, c.idempotent)
			wantSame(t, "has a key", in.Key != "", c.idempotent)
		}
	})
}

func TestNewConsumerOfResponsesComesBeforeAStrandedOne(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := startRig(t, handlers{"m": slow})
		var waiting []<-chan result
		for range 10 {
			waiting = append(waiting, goCall(r.client, within(t, time.Minute), "m", []byte("x")))
		}
		settle()
		r.broker.With(func(b *brokertest.Broker) {
			for _, l := range b.Links {
				if l.Name == "amqpx client consume" || l.Name == "amqpx client publish" {
					l.Strand()
				}
			}
		})
		pass(time.Second)
		r.broker.With(func(b *brokertest.Broker) {
			wantSame(t, "consumers, one of them dead", len(b.Queues[r.client.route.replyTo].Consumers), 2)
		})
		for _, done := range waiting {
			wantResponse(t, <-done, "x")
		}
	})
}

// Options of all calls are read once, and take no memory in a call.
//
//nolint:paralleltest // counts allocations
func TestOptionsOfAllCallsAreReadOnce(t *testing.T) {
	cfg, err := newClientConfig(testURL, []ClientOption{WithCallOptions(WaitForServer()), WithMethod("m", Idempotent())})
	if err != nil {
		t.Fatal(err)
	}
	for _, method := range []string{"m", "other"} {
		got := cfg.callConfigOf(method)
		wantSame(t, "waits", got.waitForServer, true)
		wantSame(t, "idempotent", got.idempotent, method == "m")
		wantSame(t, "own option", cfg.callConfigOf(method).with([]CallOption{WithIdempotencyKey("k")}).idempotencyKey, "k")
		wantSame(t, "own option in the next call", cfg.callConfigOf(method).idempotencyKey, "")
		wantSame(t, "allocations", testing.AllocsPerRun(10, func() { cfg.callConfigOf(method) }), 0)
	}
}
