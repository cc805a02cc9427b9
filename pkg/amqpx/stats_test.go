package amqpx

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"rabbitmq-rpc/pkg/amqpx/internal/brokertest"
)

// observerNotes records the calls of an observer's methods.
type observerNotes struct {
	mu    sync.Mutex
	notes []string
}

func (o *observerNotes) note(format string, args ...any) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.notes = append(o.notes, fmt.Sprintf(format, args...))
}

func (o *observerNotes) CallSettled(method string, code Code, took time.Duration) {
	o.note("call %s %s %v", method, code, took)
}
func (o *observerNotes) BatchSent(calls int) { o.note("sent %d", calls) }
func (o *observerNotes) HandlerEnded(method string, code Code, queued, took time.Duration) {
	o.note("handler %s %s %v %v", method, code, queued, took)
}

func (o *observerNotes) RequestRefused(method string, code Code) {
	o.note("refused %q %s", method, code)
}
func (o *observerNotes) BatchReceived(calls int) { o.note("received %d", calls) }

// want compares the recorded notes with notes, in any order.
func (o *observerNotes) want(t *testing.T, notes ...string) {
	t.Helper()
	o.mu.Lock()
	defer o.mu.Unlock()
	slices.Sort(o.notes)
	slices.Sort(notes)
	if !slices.Equal(o.notes, notes) {
		t.Errorf("observed %q, want %q", o.notes, notes)
	}
	o.notes = nil
}

func TestObserversAreToldOfEveryCall(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var client, server observerNotes
		b := brokertest.New()
		slow := func(_ context.Context, req *Request) ([]byte, error) {
			pass(time.Second)
			if string(req.Body) == "bad" {
				return nil, Errorf(CodeNotFound, "no")
			}
			return []byte(req.Queued.String()), nil
		}
		startServer(t, b, handlers{"m": slow}, WithServerObserver(&server), WithWorkers(1))
		c := startClient(t, b, WithClientObserver(&client))
		ready(t, c.WaitReady)
		first := goCall(c, within(t, time.Minute), "m", nil)
		settle()
		second := c.Go(within(t, time.Minute), "m", []byte("bad"))
		wantResponse(t, <-first, "0s")
		<-second.Done()
		_, _ = c.Call(within(t, time.Minute), "made up by the caller", nil)
		client.want(t, "call m  1s", "call m not_found 2s", "call made up by the caller unimplemented 0s")
		server.want(t, "handler m  0s 1s", "handler m not_found 1s 1s", `refused "" unimplemented`)
	})
}

func TestObserversAreToldOfBatches(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var client, server observerNotes
		b := brokertest.New()
		startServer(t, b, handlers{"m": echo, "start batching": echo}, WithBatch(BatchAuto), WithServerObserver(&server))
		r := &rig{t: t, broker: b, client: startClient(t, b, WithBatch(BatchAuto), WithClientObserver(&client))}
		ready(t, r.client.WaitReady)
		r.awaitBatching()
		for _, call := range r.batchOf(3, "m") {
			<-call
		}
		for _, o := range []*observerNotes{&client, &server} {
			o.mu.Lock()
			sizes := slices.DeleteFunc(o.notes, func(n string) bool { return n != "sent 3" && n != "received 3" })
			wantSame(t, "batches of three", len(sizes), 1)
			o.mu.Unlock()
		}
	})
}

// The names are part of the wire format of the control plane (docs/protocol.md).
func TestServerStatsInJSON(t *testing.T) {
	t.Parallel()
	const text = `{"requests":1,"in_flight":2,"ok":3,"failed":4,"panics":5,"refused":6,"expired":7,"shed":8,"too_large":9,` +
		`"deferred":10,"caller_limited":25,"reply_refused":26,"default_exchange":27,"replayed":11,"canceled":12,"returned":13,"moved":14,"dead":15,"batched":16,"undeliverable":17,` +
		`"unroutable":18,"reconnects":19,"workers":20,"busy":21,"waiting":22,"stuck":23,"bytes_in_hand":24,` +
		`"streams":{"open":27,"opened":28,"failed":29,"refused":30,"items_sent":31,"items_received":32,"bytes_sent":33,"bytes_received":34,"messages_sent":35,"late":36},` +
		`"blocked_seconds":1.5,"oldest_handler_seconds":90}`
	want := ServerStats{
		Requests: 1, InFlight: 2, OK: 3, Failed: 4, Panics: 5, Refused: 6, Expired: 7, Shed: 8, TooLarge: 9,
		Deferred: 10, Replayed: 11, Canceled: 12, Requeued: 13, Republished: 14, Dead: 15, Batched: 16, Undeliverable: 17,
		Unroutable: 18, Reconnects: 19, Workers: 20, Busy: 21, Waiting: 22, Stuck: 23, BytesInHand: 24, CallerLimited: 25, ReplyRefused: 26, DefaultExchange: 27,
		Streams: StreamStats{Open: 27, Opened: 28, Failed: 29, Refused: 30, ItemsSent: 31, ItemsReceived: 32, BytesSent: 33, BytesReceived: 34, MessagesSent: 35, Late: 36},
		Blocked: 1500 * time.Millisecond, OldestHandler: 90 * time.Second,
	}
	var got ServerStats
	wantSame(t, "error", json.Unmarshal([]byte(text), &got), nil)
	wantSame(t, "decoded", got, want)
	encoded, err := json.Marshal(want)
	wantSame(t, "error", err, nil)
	wantSame(t, "encoded", string(encoded), text)
	wantSame(t, "error", json.Unmarshal([]byte(`{"blocked_seconds":1e300,"oldest_handler_seconds":-1e300,"unknown":{}}`), &got), nil)
	wantSame(t, "bounded", [2]time.Duration{got.Blocked, got.OldestHandler}, [2]time.Duration{math.MaxInt64, math.MinInt64})
	if err := json.Unmarshal([]byte(`{"requests":-1}`), &got); err == nil {
		t.Error("a negative count is decoded")
	}
}
