package amqpx_test

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"rabbitmq-rpc/pkg/amqpx"
	"rabbitmq-rpc/pkg/amqpx/amqpxtest"
)

// replicas are servers of one queue with one store, in a synctest bubble.
type replicas struct {
	t      *testing.T
	broker *amqpxtest.Broker
	store  *amqpxtest.DedupStore
	client *amqpx.Client
	logs   *observer.ObservedLogs
	logger *zap.Logger
}

func newReplicas(t *testing.T) *replicas {
	t.Helper()
	core, logs := observer.New(zap.InfoLevel)
	begun := time.Now()
	t.Cleanup(func() {
		if t.Failed() {
			for _, line := range logs.All() {
				t.Log(line.Time.Sub(begun), line.Message, line.ContextMap())
			}
		}
	})
	return &replicas{t: t, broker: amqpxtest.NewBroker(), store: amqpxtest.NewDedupStore(), logger: zap.New(core), logs: logs}
}

// connect starts the client. A client that is there before the queue could take the queue for one that was
// declared again, and send an idempotent call a second time.
func (r *replicas) connect() {
	r.t.Helper()
	client, err := amqpx.NewClient(amqpxtest.URL, r.broker.Option(), amqpx.WithBatch(amqpx.BatchOff), amqpx.WithTimeout(time.Minute),
		amqpx.WithCallOptions(amqpx.WaitForServer()))
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() {
		if err := client.Close(context.Background()); err != nil {
			r.t.Error(err)
		}
	})
	if err := client.WaitReady(r.t.Context()); err != nil {
		r.t.Fatal(err)
	}
	r.client = client
}

// serve starts a server with the method "m", one worker and no waiting requests, so that the broker gives
// the next request to another server while the worker is busy.
func (r *replicas) serve(h amqpx.Handler, register []amqpx.HandleOption, opts ...amqpx.ServerOption) *amqpx.Server {
	r.t.Helper()
	return r.serveWith(r.store, h, register, opts...)
}

// serveWith is serve with another store.
func (r *replicas) serveWith(store amqpx.DedupStore, h amqpx.Handler, register []amqpx.HandleOption, opts ...amqpx.ServerOption) *amqpx.Server {
	r.t.Helper()
	own := []amqpx.ServerOption{r.broker.Option(), amqpx.WithDedupStore(store), amqpx.WithWorkers(1), amqpx.WithPrefetch(1), amqpx.WithLogger(r.logger)}
	server, err := amqpx.NewServer(amqpxtest.URL, append(own, opts...)...)
	if err != nil {
		r.t.Fatal(err)
	}
	if err := server.Handle("m", h, register...); err != nil {
		r.t.Fatal(err)
	}
	served := make(chan struct{})
	go func() { // ends with the test
		defer close(served)
		_ = server.Serve(context.Background())
	}()
	r.t.Cleanup(func() {
		server.Close()
		<-served
	})
	if err := server.WaitReady(r.t.Context()); err != nil {
		r.t.Fatal(err)
	}
	if r.client == nil {
		r.connect()
	}
	synctest.Wait()
	return server
}

// stop drains a server.
func (r *replicas) stop(s *amqpx.Server) {
	r.t.Helper()
	if err := s.Shutdown(r.t.Context()); err != nil {
		r.t.Fatal(err)
	}
}

// pass lets the bubble's virtual time advance by d.
func pass(d time.Duration) {
	<-time.After(d)
	synctest.Wait()
}

// outcome is the result of a call.
type outcome struct {
	body string
	err  error
	took time.Duration
}

// call starts a call with the key "key".
func (r *replicas) call(body string, opts ...amqpx.CallOption) <-chan outcome {
	return r.callWith(r.t.Context(), body, append(opts, amqpx.WithIdempotencyKey("key"))...)
}

// callWith is call with the context and all options.
func (r *replicas) callWith(ctx context.Context, body string, opts ...amqpx.CallOption) <-chan outcome {
	result, begun := make(chan outcome, 1), time.Now()
	go func() { // ends with the call
		got, err := r.client.Call(ctx, "m", []byte(body), opts...)
		result <- outcome{string(got), err, time.Since(begun)}
	}()
	synctest.Wait()
	return result
}

// wants compares the result of a call. An error is known by its code and outcome.
func (r *replicas) wants(what string, got <-chan outcome, want string) {
	r.t.Helper()
	o := <-got
	text := o.body
	if o.err != nil {
		text = fmt.Sprintf("%s, %s", amqpx.CodeOf(o.err), amqpx.OutcomeOf(o.err))
	}
	if text != want {
		r.t.Errorf("%s: got %q (error %v), want %q", what, text, o.err, want)
	}
}

// runs counts the runs of a handler, which returns the number of the run.
type runs struct{ atomic.Int64 }

func (n *runs) handle(context.Context, *amqpx.Request) ([]byte, error) {
	return fmt.Append(nil, n.Add(1)), nil
}

// until returns the handler with a wait for each run. It does not heed its context.
func (n *runs) until(leave <-chan struct{}) amqpx.Handler {
	return func(ctx context.Context, req *amqpx.Request) ([]byte, error) {
		body, err := n.handle(ctx, req)
		<-leave
		return body, err
	}
}

func (r *replicas) wantRuns(n *runs, want int64) {
	r.t.Helper()
	if got := n.Load(); got != want {
		r.t.Errorf("%d runs, want %d", got, want)
	}
}

// TestKeyRunsOnceOverServers: a second request waits for the server that runs the first, without a
// worker, and a third gets the stored response.
func TestKeyRunsOnceOverServers(t *testing.T) {
	t.Parallel()
	for _, memory := range []int{amqpx.DefaultDedupBytes, 0} {
		t.Run(fmt.Sprint("memory of ", memory), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				r, n, leave := newReplicas(t), &runs{}, make(chan struct{})
				kept := amqpx.WithDedup(memory, time.Hour)
				a := r.serve(n.until(leave), nil, kept)
				first := r.call("body")
				b := r.serve(n.handle, nil, kept)
				second := r.call("body")
				pass(3 * amqpx.DefaultDedupLease)
				r.wantRuns(n, 1)
				if busy := b.Stats().Busy; busy != 0 {
					t.Errorf("the request that waits occupies %d workers", busy)
				}
				close(leave)
				r.wants("the first", first, "1")
				r.wants("the second", second, "1")
				r.stop(a)
				c := r.serve(n.handle, nil, kept)
				r.stop(b)
				r.wants("the third", r.call("body"), "1")
				r.wants("another key", r.callWith(t.Context(), "body", amqpx.WithIdempotencyKey("other")), "2")
				if b, c := b.Stats().Replayed, c.Stats().Replayed; b != 1 || c != 1 {
					t.Errorf("replayed: %d and %d, want 1 and 1", b, c)
				}
				r.wants("another body", r.call("other"), "failed_precondition, did not run")
			})
		})
	}
}

// TestStoredResponseIsWhole: another server sends what the first has sent, and runs what is not final
// again.
func TestStoredResponseIsWhole(t *testing.T) {
	t.Parallel()
	header := map[string]any{
		"text": "a", "bytes": []byte{0, 255}, "number": int64(1) << 40, "truth": true, "nested": map[string]any{"list": []any{"x", int32(1)}},
	}
	respond := func(ctx context.Context) error {
		err := amqpx.SetResponseContentType(ctx, "application/json", "gzip")
		for name, value := range header {
			err = errors.Join(err, amqpx.SetResponseHeader(ctx, name, value), amqpx.SetResponseTrailer(ctx, name, value))
		}
		return err
	}
	for name, c := range map[string]struct {
		handler func(ctx context.Context) ([]byte, error)
		runs    int64
	}{
		"result":       {func(ctx context.Context) ([]byte, error) { return []byte("\x00\xff"), respond(ctx) }, 1},
		"empty result": {func(context.Context) ([]byte, error) { return nil, nil }, 1},
		"final error": {func(ctx context.Context) ([]byte, error) {
			return nil, errors.Join(respond(ctx), amqpx.Errorf(amqpx.CodeNotFound, "no %q", "x").WithRetryAfter(time.Minute).
				WithDetail(amqpx.ErrorInfo{Reason: "R", Domain: "d"}))
		}, 1},
		"error that is not final": {func(context.Context) ([]byte, error) { return nil, amqpx.Errorf(amqpx.CodeAborted, "again") }, 2},
		"panic":                   {func(context.Context) ([]byte, error) { panic("x") }, 2},
		"refusal":                 {func(context.Context) ([]byte, error) { return nil, amqpx.Refuse(amqpx.CodeNotFound, "no") }, 2},
		"result beyond the limit": {func(context.Context) ([]byte, error) { return make([]byte, 2<<20), nil }, 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				r, n := newReplicas(t), &runs{}
				var got [2]struct {
					outcome

					info amqpx.CallInfo
				}
				for i := range got {
					s := r.serve(func(ctx context.Context, _ *amqpx.Request) ([]byte, error) {
						n.Add(1)
						return c.handler(ctx)
					}, nil, amqpx.WithMaxMessageSize(1<<20))
					got[i].outcome = <-r.call("body", amqpx.WithCallInfo(&got[i].info))
					r.stop(s)
				}
				a, b := got[0], got[1]
				if a.body != b.body || fmt.Sprint(a.err) != fmt.Sprint(b.err) || amqpx.OutcomeOf(a.err) != amqpx.OutcomeOf(b.err) {
					t.Errorf("got %q, %v, and then %q, %v", a.body, a.err, b.body, b.err)
				}
				if !reflect.DeepEqual(a.info.Response, b.info.Response) {
					t.Errorf("got %+v, and then %+v", a.info.Response, b.info.Response)
				}
				var before, after *amqpx.Error
				if errors.As(a.err, &before) && errors.As(b.err, &after) &&
					(!reflect.DeepEqual(before.Details(), after.Details()) || before.RetryAfter() != after.RetryAfter()) {
					t.Errorf("got %v, %v, and then %v, %v", before.Details(), before.RetryAfter(), after.Details(), after.RetryAfter())
				}
				r.wantRuns(n, c.runs)
			})
		})
	}
}

// TestKeysOfOthers: a key belongs to its method, its owner and its queue.
func TestKeysOfOthers(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r, n := newReplicas(t), &runs{}
		tenant := amqpx.WithDedupScope(func(_ context.Context, req *amqpx.Request) string {
			name, _ := req.Header["tenant"].(string)
			return name
		})
		of := func(name string) amqpx.CallOption { return amqpx.WithHeader(map[string]any{"tenant": name}) }
		for i, want := range []string{"1", "1"} { // the second server answers from the store
			s := r.serve(n.handle, nil, tenant)
			r.wants(fmt.Sprint("tenant a at server ", i), r.call("body", of("a")), want)
			r.stop(s)
		}
		r.serve(n.handle, nil, tenant)
		r.wants("another tenant", r.call("body", of("b")), "2")
		r.wants("the user of the broker", r.call("body"), "3")
		other := r.serve(n.handle, nil, amqpx.WithQueue(amqpx.Queue{Name: "other"}))
		client, err := amqpx.NewClient(amqpxtest.URL, r.broker.Option(), amqpx.WithQueue(amqpx.Queue{Name: "other"}))
		if err != nil {
			t.Fatal(err)
		}
		body, err := client.Call(t.Context(), "m", []byte("body"), amqpx.WithIdempotencyKey("key"), amqpx.WaitForServer())
		if string(body) != "4" || err != nil {
			t.Errorf("another queue: got %q, %v", body, err)
		}
		r.stop(other)
		if err := client.Close(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

// partitioned is a store that a server cannot reach any more once it is cut: to the others the server is
// dead.
type partitioned struct {
	amqpx.DedupStore

	cut atomic.Bool
}

var errCut = errors.New("cut off")

func (p *partitioned) Claim(ctx context.Context, key string, claim amqpx.DedupClaim, lease time.Duration) (amqpx.DedupEntry, error) {
	if p.cut.Load() {
		return amqpx.DedupEntry{}, errCut
	}
	return p.DedupStore.Claim(ctx, key, claim, lease)
}

func (p *partitioned) Complete(ctx context.Context, key string, claim amqpx.DedupClaim, response []byte, age time.Duration) error {
	if p.cut.Load() {
		return errCut
	}
	return p.DedupStore.Complete(ctx, key, claim, response, age)
}

func (p *partitioned) Release(ctx context.Context, key string, claim amqpx.DedupClaim) error {
	if p.cut.Load() {
		return errCut
	}
	return p.DedupStore.Release(ctx, key, claim)
}

// TestClaimOfADeadServerEnds: the next server runs the request when the lease has ended, and not
// before. The first, which is not dead after all, notices it.
func TestClaimOfADeadServerEnds(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const lease = 6 * time.Second
		r, n, leave := newReplicas(t), &runs{}, make(chan struct{})
		dead := &partitioned{DedupStore: r.store}
		a := r.serveWith(dead, n.until(leave), nil, amqpx.WithDedupLease(lease))
		first := r.call("body")
		pass(lease + time.Second) // the claim is renewed, the last time a second ago.
		dead.cut.Store(true)
		r.serve(n.handle, nil, amqpx.WithDedupLease(lease))
		second := <-r.call("body")
		if second.body != "2" || second.err != nil || second.took < lease-2*time.Second || second.took > lease+time.Second {
			t.Errorf("the second server: got %q, %v after %v, want a run after %v", second.body, second.err, second.took, lease)
		}
		dead.cut.Store(false)
		pass(lease) // for a renewal.
		close(leave)
		r.wants("the first server, which was not dead", first, "1")
		if lost := r.logs.FilterMessage("another server has the idempotency key of a request that ran here").Len(); lost != 1 {
			t.Errorf("%d lines about the lost claim, want 1", lost)
		}
		r.stop(a)
		r.wants("later", r.call("body"), "2")
	})
}

// TestStoreIsAway: requests with a key do not run, others do, and clients call again in time.
func TestStoreIsAway(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r, n := newReplicas(t), &runs{}
		r.serve(n.handle, nil)
		r.store.Stop()
		r.wants("a key", r.call("body", amqpx.CallTimeout(time.Second)), "unavailable, did not run")
		r.wantRuns(n, 0)
		r.wants("no key", r.callWith(t.Context(), "body"), "1")
		r.wants("only idempotent", r.callWith(t.Context(), "body", amqpx.Idempotent()), "2")
		waits := r.call("body")
		pass(3 * time.Second)
		r.wantRuns(n, 2)
		r.store.Start()
		r.wants("a key, called again", waits, "3")
		if lines := r.logs.FilterMessage("the store of idempotency keys failed").Len(); lines != 1 {
			t.Errorf("%d lines about the store, want 1", lines)
		}
	})
}

// TestOneWayRequestWaitsForTheStore: nobody would send a one-way request again.
func TestOneWayRequestWaitsForTheStore(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r, n := newReplicas(t), &runs{}
		r.serve(n.handle, nil)
		r.store.Stop()
		if err := r.client.Send(t.Context(), "m", []byte("body"), amqpx.WithIdempotencyKey("key")); err != nil {
			t.Fatal(err)
		}
		pass(time.Minute)
		r.wantRuns(n, 0)
		r.store.Start()
		pass(2 * time.Second)
		r.wantRuns(n, 1)
	})
}

// TestResponseIsStoredLater: the store goes away while the handler runs. The response is sent, and stored
// when the store is back.
func TestResponseIsStoredLater(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r, n, leave := newReplicas(t), &runs{}, make(chan struct{})
		a := r.serve(n.until(leave), nil)
		first := r.call("body")
		r.store.Stop()
		close(leave)
		r.wants("while the store is away", first, "1")
		r.store.Start()
		pass(2 * time.Second)
		r.stop(a)
		r.serve(n.handle, nil)
		r.wants("from the store", r.call("body"), "1")
		r.wantRuns(n, 1)
	})
}

// TestRequestEndsWhileItWaitsForAnotherServer: the deadline and the cancellation of a request hold while
// another server runs its key.
func TestRequestEndsWhileItWaitsForAnotherServer(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r, n, leave := newReplicas(t), &runs{}, make(chan struct{})
		r.serve(n.until(leave), nil)
		first := r.call("body")
		b := r.serve(n.handle, nil)
		r.wants("deadline", r.call("body", amqpx.CallTimeout(5*time.Second)), "deadline_exceeded, may have run")
		ctx, cancel := context.WithCancel(t.Context())
		canceled := r.callWith(ctx, "body", amqpx.WithIdempotencyKey("key"))
		cancel()
		r.wants("cancel", canceled, "canceled, may have run")
		pass(time.Second)
		if inFlight := b.Stats().InFlight; inFlight != 0 {
			t.Errorf("%d requests wait on", inFlight)
		}
		close(leave)
		r.wants("the first", first, "1")
		r.wantRuns(n, 1)
	})
}

// TestAtMostOnceWithAStore: a request whose response was lost is answered from the store by another
// server, and refused if the store does not know it.
func TestAtMostOnceWithAStore(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		store bool
		want  string
	}{
		"with the response": {true, "1"}, "without": {false, "unavailable, may have run"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				r, n, leave := newReplicas(t), &runs{}, make(chan struct{})
				other := r.store
				if !c.store {
					other = amqpxtest.NewDedupStore()
				}
				once := []amqpx.HandleOption{amqpx.AtMostOnce()}
				r.serve(n.until(leave), once)
				got := r.call("body")
				r.serveWith(other, n.handle, once)
				r.broker.FailResponses(amqpx.DefaultQueue, amqpxtest.DisconnectBefore())
				close(leave)
				r.wants("the call", got, c.want)
				r.wantRuns(n, 1)
			})
		})
	}
}

// TestCallToAllServersRunsOnEach: such a call has one key, and is meant for each server.
func TestCallToAllServersRunsOnEach(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r, n := newReplicas(t), &runs{}
		for range 2 {
			r.serve(n.handle, []amqpx.HandleOption{amqpx.OnEveryServer()})
		}
		pass(time.Second) // the servers' own queues.
		responses := 0
		for _, err := range r.client.CallAll(t.Context(), "m", nil, amqpx.WithIdempotencyKey("key"), amqpx.CallTimeout(time.Second)) {
			if err != nil {
				t.Error(err)
			}
			responses++
		}
		if responses != 2 {
			t.Errorf("%d responses, want 2", responses)
		}
		r.wantRuns(n, 2)
	})
}

// brokenStore is a store that panics.
type brokenStore struct{ amqpx.DedupStore }

// TestBrokenStore: a panic in the store is a failure of the store.
func TestBrokenStore(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r, n := newReplicas(t), &runs{}
		r.serveWith(brokenStore{}, n.handle, nil)
		r.wants("the call", r.call("body", amqpx.CallTimeout(time.Second)), "unavailable, did not run")
		r.wantRuns(n, 0)
	})
}

// TestMiddlewareRunsAHandlerAgain: the store does not stop middleware that runs the handler of a request
// again, as without a store.
func TestMiddlewareRunsAHandlerAgain(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r, n := newReplicas(t), &runs{}
		again := amqpx.WithMiddleware(func(next amqpx.Handler) amqpx.Handler {
			return func(ctx context.Context, req *amqpx.Request) ([]byte, error) {
				if _, err := next(ctx, req); err != nil {
					return nil, err
				}
				return next(ctx, req)
			}
		})
		s := r.serve(n.handle, nil, again)
		r.wants("the first", r.call("body"), "2")
		r.stop(s)
		r.serve(n.handle, nil)
		r.wants("from the store", r.call("body"), "2")
	})
}

func TestSettingsOfTheStore(t *testing.T) {
	t.Parallel()
	for want, opts := range map[string][]amqpx.ServerOption{
		"dedup lease 500ms": {amqpx.WithDedupLease(500 * time.Millisecond)},
		"want at least 1s with a dedup store": {
			amqpx.WithDedupStore(amqpxtest.NewDedupStore()), amqpx.WithDedup(1<<20, time.Millisecond),
		},
	} {
		if _, err := amqpx.NewServer(amqpxtest.URL, opts...); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got the error %v, want %q", err, want)
		}
	}
}
