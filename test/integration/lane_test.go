//go:build integration

package integration

import (
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"rabbitmq-rpc/pkg/amqpx"
	"rabbitmq-rpc/test/internal/rig"
)

// These tests cover batching: waiting calls, and waiting responses, are sent together.

// openLane makes calls of "echo" until some are sent in a batch.
func openLane(t testing.TB, client *amqpx.Client) {
	t.Helper()
	const callers = 64
	rig.Eventually(t, "calls travel together", func() bool {
		everyResponseIsMine(t, client, callers, 1)
		return client.Stats().Batched > 0
	})
}

// batcher is a client whose calls can be forced into a batch.
type batcher struct {
	t       *testing.T
	proxy   *rig.Proxy
	fillers *held
	*amqpx.Client
}

// filler is the method of the calls that fill the window.
const filler = "filler"

// newBatcher returns a batcher. Its servers need the methods added by methods, and openLane
// must precede together.
func newBatcher(t *testing.T, r *rig.Rig) *batcher {
	t.Helper()
	b := &batcher{t: t, proxy: r.Proxy(), fillers: hold()}
	close(b.fillers.release)
	b.Client = r.ClientAt(b.proxy.URL())
	rig.Connected(t, b.Client)
	return b
}

// methods adds a batcher's methods to a server's methods.
func (b *batcher) methods(m rig.Methods) rig.Methods {
	m[filler], m["echo"] = b.fillers.handle, echo
	return m
}

// together makes n calls that are sent in one batch: while the broker is muted, two filler
// calls occupy the window.
func (b *batcher) together(n int, call func(i int) <-chan outcome) []<-chan outcome {
	b.t.Helper()
	before := b.Stats()
	fillers := b.fillWindow()
	var calls []<-chan outcome
	for i := range n {
		calls = append(calls, call(i))
	}
	rig.Eventually(b.t, "the calls wait", func() bool { return b.Stats().InFlight == before.InFlight+uint64(len(fillers)+n) })
	b.proxy.Unmute()
	b.collect(fillers)
	rig.Eventually(b.t, "the batch left", func() bool { return b.Stats().Batched-before.Batched >= uint64(n)-1 })
	return calls
}

// fillWindow mutes the broker and fills the window. A pending confirm of an earlier message
// may occupy a place and delay a filler; then fillWindow unmutes the broker and starts again.
func (b *batcher) fillWindow() []<-chan outcome {
	b.t.Helper()
	const window, tries = 2, 10
	for range tries {
		b.proxy.Mute()
		var fillers []<-chan outcome
		entered := 0
		for len(fillers) < window && entered == len(fillers) {
			fillers = append(fillers, begin(rig.Patience(b.t), b.Client, filler, nil))
			select {
			case <-b.fillers.entered:
				entered++
			case <-time.After(time.Second):
			}
		}
		if entered == window {
			return fillers
		}
		b.proxy.Unmute()
		b.collect(fillers)
		rig.Recv(b.t, b.fillers.entered, "the call that waited")
	}
	b.t.Fatalf("the lane's window was never empty, %d times", tries)
	return nil
}

// collect waits for the fillers' responses.
func (b *batcher) collect(fillers []<-chan outcome) {
	b.t.Helper()
	for _, f := range fillers {
		if got := rig.Recv(b.t, f, "a call alone"); got.err != nil {
			b.t.Fatalf("a call alone: %v", got.err)
		}
	}
}

func TestCallersShareMessages(t *testing.T) {
	t.Parallel()
	persistent := amqpx.WithPersistent(true)
	for _, c := range []struct {
		name   string
		queue  amqpx.QueueType
		client []amqpx.ClientOption
		server []amqpx.ServerOption
	}{
		{name: "reply queue"},
		{name: "direct reply-to", client: []amqpx.ClientOption{amqpx.WithReplyMode(amqpx.ReplyDirect)}},
		{name: "persistent", client: []amqpx.ClientOption{persistent}, server: []amqpx.ServerOption{persistent}},
		{name: "quorum queue", queue: amqpx.QueueQuorum},
		{name: "one worker", server: []amqpx.ServerOption{amqpx.WithWorkers(1)}},
		{name: "prefetch of one", server: []amqpx.ServerOption{amqpx.WithPrefetch(1)}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			r := rig.New(t)
			r.Queue.Type = c.queue
			front, back := r.Proxy(), r.Proxy()
			var servers []*rig.Server
			for range 2 {
				servers = append(servers, r.ServeAt(back.URL(), rig.Methods{"echo": echo}, c.server...))
			}
			client := r.ClientAt(front.URL(), c.client...)
			rig.Connected(t, client)
			openLane(t, client)
			rig.Eventually(t, "every server takes batches", func() bool { return inspect(t, r, r.BatchQueue()).Consumers == len(servers) })
			before, requests, responses := client.Stats(), len(back.Heard(rig.Deliver)), len(front.Heard(rig.Deliver))
			const callers, each = 256, 20
			everyResponseIsMine(t, client, callers, each)
			got := client.Stats()
			if want := (amqpx.ClientStats{OK: before.OK + callers*each, Batched: got.Batched}); got != want {
				t.Errorf("client counted %+v, want %+v", got, want)
			}
			shared(t, callers*each, int(got.Batched-before.Batched),
				len(back.Heard(rig.Deliver))-requests, len(front.Heard(rig.Deliver))-responses)
			if q := inspect(t, r, r.BatchQueue()); q.Consumers != len(servers) {
				t.Errorf("the lane's queue has %d consumers, want one of each server", q.Consumers)
			}
			batched := uint64(0)
			for i, s := range servers {
				if err := s.Drain(); err != nil {
					t.Errorf("drain: %v", err)
				}
				if s.Stats().Batched == 0 {
					t.Errorf("server %d unpacked nothing", i)
				}
				batched += s.Stats().Batched
			}
			if sent := client.Stats().Batched; batched != sent {
				t.Errorf("%d calls came in batches, %d were sent in them", batched, sent)
			}
			if n := r.Inspect().Messages + inspect(t, r, r.BatchQueue()).Messages; n != 0 {
				t.Errorf("%d messages were not acknowledged", n)
			}
		})
	}
}

// shared checks that the calls, and their responses, needed far fewer messages than calls.
func shared(t *testing.T, calls, batched, requests, responses int) {
	t.Helper()
	const far = 3
	if batched*far < calls*(far-1) || requests*far > calls || responses*far > calls {
		t.Errorf("%d calls, %d of them in batches, took %d messages, and %d for their responses",
			calls, batched, requests, responses)
	}
}

// inspect returns the numbers of ready messages and of consumers of a queue.
func inspect(t *testing.T, r *rig.Rig, queue string) amqp.Queue {
	t.Helper()
	ch := r.Raw()
	defer func() { _ = ch.Close() }()
	q, err := ch.QueueDeclarePassive(queue, true, false, false, false, nil)
	if err != nil {
		t.Fatalf("inspect %s: %v", queue, err)
	}
	return q
}

// nothingHeld drains the only server of the rig's queues and checks that no message is
// requeued: the server held no unacknowledged message.
func nothingHeld(t *testing.T, r *rig.Rig, server *rig.Server) {
	t.Helper()
	if err := server.Drain(); err != nil {
		t.Errorf("drain: %v", err)
	}
	nothingLeft(t, r)
}

// nothingLeft checks that the rig's queues are empty. Without a server this proves that no
// message is unacknowledged.
func nothingLeft(t *testing.T, r *rig.Rig) {
	t.Helper()
	for _, queue := range []string{r.Queue.Name, r.BatchQueue()} {
		if n := inspect(t, r, queue).Messages; n != 0 {
			t.Errorf("%d messages of %s were not acknowledged", n, queue)
		}
	}
}

// unpacker is a server with batch support, played by a test.
type unpacker struct {
	t *testing.T
	r *rig.Rig
	// Batches receives the clients' batches.
	Batches <-chan amqp.Delivery
}

// unpack declares the batch queue and consumes it. A server without batch support echoes the
// calls sent alone.
func unpack(t *testing.T, r *rig.Rig) *unpacker {
	t.Helper()
	r.Serve(rig.Methods{"echo": echo}, amqpx.WithBatch(amqpx.BatchOff))
	ch := r.Raw()
	if _, err := ch.QueueDeclare(r.BatchQueue(), true, false, false, false, nil); err != nil {
		t.Fatal(err)
	}
	batches, err := ch.Consume(r.BatchQueue(), "", true, false, false, false, nil)
	if err != nil {
		t.Fatal(err)
	}
	return &unpacker{t, r, batches}
}

// answer sends responses in one batch.
func (u *unpacker) answer(replyTo string, records ...[]byte) {
	u.t.Helper()
	u.r.Publish(replyTo, amqp.Publishing{ContentType: rig.ResponsesType, Body: rig.BatchOf(records...)})
}

// echoed returns the response to a call of echo.
func echoed(call []rig.Field) []byte {
	return rig.Record(
		rig.Field{Number: rig.ResponseID, Value: rig.Text(call, rig.CallID)},
		rig.Field{Number: rig.ResponseBody, Value: rig.Text(call, rig.CallBody)},
	)
}

// TestBatchAgainstAnotherReader: an independent implementation can read the clients' batches,
// and clients ignore foreign responses without harm.
func TestBatchAgainstAnotherReader(t *testing.T) {
	t.Parallel()
	r := rig.New(t)
	u := unpack(t, r)
	client := r.Ready(amqpx.WithCallOptions(amqpx.WithHeader(map[string]any{"traceparent": "00-1-2-03"})))
	stop := make(chan struct{})
	var all sync.WaitGroup
	all.Go(func() { // ends with the load, below
		for {
			select {
			case d := <-u.Batches:
				u.echo(&d)
			case <-stop:
				return
			}
		}
	})
	openLane(t, client)
	everyResponseIsMine(t, client, 256, 10)
	close(stop)
	all.Wait()
	st := client.Stats()
	if st.Failed != 0 || st.Batched == 0 || st.Duplicates == 0 || st.Unknown == 0 {
		t.Errorf("client counted %+v, want no failure, and duplicates and unknown responses", st)
	}
	if st.Reconnects != 0 {
		t.Errorf("%d reconnects, want the connection unharmed", st.Reconnects)
	}
}

// echo checks a batch and responds: to the last call first, to the first call alone, and with
// invalid responses in addition.
func (u *unpacker) echo(d *amqp.Delivery) {
	u.t.Helper()
	calls := rig.Records(u.t, d.Body)
	if d.ContentType != rig.CallsType || len(calls) < 2 || d.Expiration == "" || d.ReplyTo == "" {
		u.t.Errorf("a batch of %d calls: content type %q, expiration %q, reply_to %q", len(calls), d.ContentType, d.Expiration, d.ReplyTo)
	}
	u.r.Publish(d.ReplyTo, amqp.Publishing{ContentType: rig.ResponsesType, Body: []byte("no batch")})
	var responses [][]byte
	for i, c := range slices.Backward(calls) {
		header := rig.Fields(u.t, []byte(rig.Text(c, rig.CallHeader)))
		if rig.Text(c, rig.CallMethod) != "echo" || rig.Number(c, rig.CallTimeout) == 0 || rig.Text(header, 1) != "traceparent" || rig.Text(header, 2) != "00-1-2-03" {
			u.t.Errorf("call %v", c)
		}
		if i > 0 {
			responses = append(responses, echoed(c))
		}
	}
	stranger := rig.Record(rig.Field{Number: rig.ResponseID, Value: "nobody's"}, rig.Field{Number: 99, Value: "later"})
	u.answer(d.ReplyTo, append(responses, stranger, responses[0], nil)...)
	u.r.Publish(d.ReplyTo, amqp.Publishing{
		CorrelationId: rig.Text(calls[0], rig.CallID), Body: []byte(rig.Text(calls[0], rig.CallBody)),
	})
}

// TestClientsShareTheLane: many clients can share the batch queue, each with its own
// responses.
func TestClientsShareTheLane(t *testing.T) {
	t.Parallel()
	r := rig.New(t)
	r.Serve(rig.Methods{"echo": echo})
	const clients, callers, each = 8, 32, 10
	var all sync.WaitGroup
	for i := range clients {
		client := r.Ready(amqpx.WithName(fmt.Sprint("client ", i)))
		all.Go(func() { everyResponseIsMine(t, client, callers, each) })
		t.Cleanup(func() {
			if st := client.Stats(); st.Batched == 0 || st.OK != callers*each || st.Unknown != 0 {
				t.Errorf("client %d counted %+v", i, st)
			}
		})
	}
	all.Wait()
}
