package amqpx

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"rabbitmq-rpc/pkg/amqpx/internal/brokertest"
	"rabbitmq-rpc/pkg/amqpx/internal/wire"
	"rabbitmq-rpc/pkg/amqpx/internal/xsync"
)

// otherReplies is the reply queue of a program other than rawQueue's.
const otherReplies = rawQueue + " of another"

// change changes a message.
type change func(*amqp.Publishing)

func from(replyTo string) change  { return func(p *amqp.Publishing) { p.ReplyTo = replyTo } }
func ofUser(user string) change   { return func(p *amqp.Publishing) { p.UserId = user } }
func withBody(body string) change { return func(p *amqp.Publishing) { p.Body = []byte(body) } }
func withToken(token string) change {
	return func(p *amqp.Publishing) { p.Headers = amqp.Table{"token": token} }
}
func resent(p *amqp.Publishing) { p.Headers = amqp.Table{wire.HeaderResent: true} }

// sent returns a request of a program that follows the contract.
func sent(correlationID, messageID string, changes ...change) amqp.Publishing {
	msg := keyed("m", messageID, correlationID)
	for _, c := range changes {
		c(&msg)
	}
	return msg
}

// checkToken is authentication middleware.
func checkToken(next Handler) Handler {
	return func(ctx context.Context, req *Request) ([]byte, error) {
		if req.Header["token"] != "right" {
			return nil, Errorf(CodeUnauthenticated, "no")
		}
		return next(ctx, req)
	}
}

// onlyResponse takes the only response to raw requests and returns its code, or its body.
func onlyResponse(t *testing.T, b *brokertest.Broker) string {
	t.Helper()
	responses := takeResponses(b)
	if len(responses) != 1 {
		t.Fatalf("%d responses, want 1", len(responses))
	}
	if code, failed := responses[0].Headers[wire.HeaderCode]; failed {
		return fmt.Sprint(code)
	}
	return string(responses[0].Body)
}

func TestMiddlewareRunsForDuplicates(t *testing.T) {
	t.Parallel()
	for name, opts := range map[string][]ServerOption{
		"store": nil, "no store": {WithDedup(0, time.Minute)},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				var runs atomic.Int64
				b, s := serve(t, handlers{"m": numbered(&runs)}, append(opts, WithMiddleware(checkToken))...)
				putRequest(b, sent("1", "key", withToken("right")))
				settle()
				putRequest(b, sent("2", "key"))
				settle()
				wantSame(t, "without a token, while it runs", onlyResponse(t, b), "unauthenticated")
				pass(time.Second)
				wantSame(t, "the first", onlyResponse(t, b), "1")
				putRequest(b, sent("3", "key"))
				settle()
				wantSame(t, "without a token, afterwards", onlyResponse(t, b), "unauthenticated")
				putRequest(b, sent("4", "other"))
				settle()
				wantSame(t, "without a token, before", onlyResponse(t, b), "unauthenticated")
				putRequest(b, sent("5", "other", withToken("right")))
				pass(time.Second)
				wantSame(t, "with a token", onlyResponse(t, b), "2")
				wantSame(t, "replayed", s.Stats().Replayed, 0)
			})
		})
	}
}

// A caller with numbered calls, or without a user, never gets another caller's response.
func TestWhoseRequestARequestRepeats(t *testing.T) {
	t.Parallel()
	id := newID()
	for _, c := range []struct {
		name          string
		first, second amqp.Publishing
		runs          int64
	}{
		{"number of another program", sent("1", ""), sent("1", "", from(otherReplies)), 2},
		{"number of another program of the same user", sent("1", "", ofUser("a")), sent("1", "", ofUser("a"), from(otherReplies)), 2},
		{"number of another program, sent again", sent("1", ""), sent("1", "", from(otherReplies), resent), 2},
		{"unique id of another program", sent(id, ""), sent(id, "", from(otherReplies)), 2},
		{"unique id, sent again after a reconnect", sent(id, ""), sent(id, "", from(otherReplies), resent), 1},
		{"the same with another body", sent(id, ""), sent(id, "", from(otherReplies), resent, withBody("x")), 2},
		{"the same of another user", sent(id, "", ofUser("a")), sent(id, "", from(otherReplies), resent, ofUser("b")), 2},
		{"the same number and reply_to", sent("1", ""), sent("1", ""), 1},
		{"key of the same user", sent("1", "k", ofUser("a")), sent("2", "k", ofUser("a"), from(otherReplies)), 1},
		{"key of another user", sent("1", "k", ofUser("a")), sent("1", "k", ofUser("b")), 2},
		{"key of nobody known", sent("1", "k"), sent("1", "k", ofUser("a")), 2},
		{"key of an anonymous caller", sent("1", "k"), sent("2", "k"), 1},
		{"key of another anonymous caller", sent("1", "k"), sent("2", "k", from(otherReplies)), 2},
		{"unique key of another anonymous caller", sent("1", id), sent("2", id, from(otherReplies)), 2},
		{"one way", sent("1", "", from("")), sent("1", "", from("")), 2},
		{"one way, key of nobody known", sent("1", "k", from("")), sent("1", "k", from("")), 2},
		{"one way, key of a user", sent("1", "k", from(""), ofUser("a")), sent("1", "k", from(""), ofUser("a")), 1},
	} {
		for between, wait := range map[string]time.Duration{"while it runs": time.Millisecond, "afterwards": 2 * time.Second} {
			t.Run(c.name+", "+between, func(t *testing.T) {
				t.Parallel()
				synctest.Test(t, func(t *testing.T) {
					var runs atomic.Int64
					b, s := serve(t, handlers{"m": numbered(&runs)})
					putRequest(b, c.first)
					pass(wait)
					putRequest(b, c.second)
					pass(10 * time.Second)
					wantSame(t, "executions", runs.Load(), c.runs)
					wantSame(t, "replayed", s.Stats().Replayed, uint64(2-c.runs))
					wantSame(t, "in flight", s.Stats().InFlight, 0)
				})
			})
		}
	}
}

func TestAnotherBodyUnderAKeyIsRefused(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var runs atomic.Int64
		b, s := serve(t, handlers{"m": numbered(&runs)})
		putRequest(b, sent("1", "key"))
		settle()
		for i, between := range []time.Duration{time.Second, 0} { // during the run, after the run
			putRequest(b, sent("2", "key", withBody("other")))
			settle()
			responses := takeResponses(b)
			wantSame(t, "responses", len(responses), 1)
			wantSame(t, "code", responses[0].Headers[wire.HeaderCode], any("failed_precondition"))
			wantSame(t, "ran", responses[0].Headers[wire.HeaderRan], any(false))
			wantSame(t, "refused", s.Stats().Refused, uint64(i+1))
			pass(between)
			takeResponses(b)
		}
		putRequest(b, sent("3", "key"))
		settle()
		wantSame(t, "the first body again", onlyResponse(t, b), "1")
		wantSame(t, "executions", runs.Load(), 1)
		wantSame(t, "in flight", s.Stats().InFlight, 0)
	})
}

func TestOnlyFinalResultsAreStored(t *testing.T) {
	t.Parallel()
	final := map[Code]bool{
		CodeUnknown: true, CodeInvalidArgument: true, CodeNotFound: true, CodeAlreadyExists: true, CodeFailedPrecondition: true,
		CodeOutOfRange: true, CodeUnimplemented: true, CodeDataLoss: true,
		CodeUnavailable: false, CodeResourceExhausted: false, CodeAborted: false, CodeDeadlineExceeded: false, CodeCanceled: false,
		CodeUnauthenticated: false, CodePermissionDenied: false, CodeInternal: false,
	}
	for code, stored := range final {
		t.Run(string(code), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				var runs atomic.Int64
				b, _ := serve(t, handlers{"m": counted(&runs, func(context.Context, *Request) ([]byte, error) {
					return nil, fmt.Errorf("wrapped: %w", Errorf(code, "text"))
				})})
				for i := range 2 {
					putRequest(b, sent(strconv.Itoa(i), "key"))
					settle()
					wantSame(t, "code", onlyResponse(t, b), string(code))
				}
				wantSame(t, "stored", runs.Load() == 1, stored)
			})
		})
	}
}

// Waiting duplicates occupy no worker.
func TestDuplicateThatWaitsOccupiesNoWorker(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var runs, other atomic.Int64
		b, s := serve(t, handlers{"m": numbered(&runs), "n": numbered(&other)}, WithWorkers(2), WithPrefetch(100))
		putRequest(b, sent("first", "key"))
		settle()
		for i := range 50 {
			putRequest(b, sent(strconv.Itoa(i), "key"))
		}
		settle()
		putRequest(b, request("n"))
		settle()
		wantSame(t, "another request runs", other.Load(), 1)
		wantSame(t, "busy", s.Stats().Busy, 2)
		pass(10 * time.Second)
		wantSame(t, "executions", runs.Load(), 1)
		wantSame(t, "replayed", s.Stats().Replayed, 50)
		wantSame(t, "responses", len(takeResponses(b)), 52)
		wantSame(t, "busy", s.Stats().Busy, 0)
		wantSame(t, "in flight", s.Stats().InFlight, 0)
		wantSame(t, "unacknowledged", b.Unacked(DefaultQueue), 0)
	})
}

// mostRuns counts executions, and the most concurrent executions.
type mostRuns struct{ runs, now, most atomic.Int64 }

func (m *mostRuns) handler(h Handler) Handler {
	return func(ctx context.Context, req *Request) ([]byte, error) {
		m.runs.Add(1)
		if n := m.now.Add(1); n > m.most.Load() {
			m.most.Store(n)
		}
		defer m.now.Add(-1)
		return h(ctx, req)
	}
}

// When the result of an execution applies only to the first request (its credentials, its
// deadline), the waiting duplicates run one after the other, each on a worker.
func TestDuplicatesRunAfterAnExecutionThatIsNotTheirs(t *testing.T) {
	t.Parallel()
	for name, h := range map[string]Handler{
		"refused the first one's credentials": func(ctx context.Context, _ *Request) ([]byte, error) {
			xsync.Sleep(ctx, time.Second)
			return nil, Errorf(CodePermissionDenied, "no")
		},
		"ran out of the first one's time": untilDone,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				var m, others mostRuns
				b, s := serve(t, handlers{"m": m.handler(h), "n": others.handler(slow)}, WithWorkers(2), WithPrefetch(100))
				for i := range 5 {
					putRequest(b, sent(strconv.Itoa(i), "key", func(p *amqp.Publishing) { p.Expiration = strconv.Itoa(1000 * (i + 1)) }))
					settle()
				}
				for range 10 {
					putRequest(b, request("n"))
				}
				pass(time.Minute)
				wantSame(t, "at once", m.most.Load(), 1)
				wantSame(t, "all at once", m.most.Load()+others.most.Load() <= 3, true)
				wantSame(t, "executions of others", others.runs.Load(), 10)
				wantSame(t, "responses", len(takeResponses(b)), 15)
				wantSame(t, "busy", s.Stats().Busy, 0)
				wantSame(t, "in flight", s.Stats().InFlight, 0)
				putRequest(b, request("n"))
				putRequest(b, request("n"))
				settle()
				wantSame(t, "workers in the end", others.now.Load(), 2)
			})
		})
	}
}

func TestWaitingDuplicatesShareAnErrorOfTheOperation(t *testing.T) {
	t.Parallel()
	for name, fail := range map[string]func() ([]byte, error){
		"coded":   func() ([]byte, error) { return nil, Errorf(CodeUnavailable, "text") },
		"uncoded": func() ([]byte, error) { return nil, errors.New("text") },
		"panic":   func() ([]byte, error) { panic("text") },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				var runs atomic.Int64
				b, s := serve(t, handlers{"m": counted(&runs, func(ctx context.Context, _ *Request) ([]byte, error) {
					xsync.Sleep(ctx, time.Second)
					return fail()
				})})
				putRequest(b, sent("1", "key"))
				putRequest(b, sent("2", "key"))
				pass(10 * time.Second)
				responses := takeResponses(b)
				wantSame(t, "responses", len(responses), 2)
				wantSame(t, "code of the second", responses[1].Headers[wire.HeaderCode], responses[0].Headers[wire.HeaderCode])
				wantSame(t, "executions", runs.Load(), 1)
				wantSame(t, "failed", s.Stats().Failed, 1)
				putRequest(b, sent("3", "key"))
				pass(10 * time.Second)
				wantSame(t, "executions", runs.Load(), 2)
			})
		})
	}
}

func TestWaitingDuplicateGetsAResponseThatIsTooLargeToStore(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var runs atomic.Int64
		b, s := serve(t, handlers{"m": counted(&runs, func(ctx context.Context, _ *Request) ([]byte, error) {
			xsync.Sleep(ctx, time.Second)
			return []byte(strings.Repeat("x", 5000)), nil
		})}, WithDedup(1000, time.Minute))
		putRequest(b, sent("1", "key"))
		putRequest(b, sent("2", "key"))
		pass(10 * time.Second)
		for _, a := range takeResponses(b) {
			wantSame(t, "size", len(a.Body), 5000)
		}
		wantSame(t, "executions", runs.Load(), 1)
		wantSame(t, "replayed", s.Stats().Replayed, 1)
		if e := s.dedup; e.stored.bytes != 0 || e.stored.count()+len(e.running) != 0 {
			t.Errorf("kept: %d bytes, %d responses, %d executions", e.stored.bytes, e.stored.count(), len(e.running))
		}
	})
}

func TestWaitingDuplicatesAreBounded(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var runs atomic.Int64
		b, s := serve(t, handlers{"m": numbered(&runs)}, WithPrefetch(2*maxWaitingDuplicates))
		putRequest(b, sent("first", "key"))
		settle()
		for i := range maxWaitingDuplicates + 10 {
			putRequest(b, sent(strconv.Itoa(i), "key"))
		}
		settle()
		refused := takeResponses(b)
		wantSame(t, "refused", len(refused), 10)
		wantSame(t, "code", refused[0].Headers[wire.HeaderCode], any("resource_exhausted"))
		pass(10 * time.Second)
		wantSame(t, "responses", len(takeResponses(b)), maxWaitingDuplicates+1)
		wantSame(t, "in flight", s.Stats().InFlight, 0)
	})
}

func TestWithoutAStoreADuplicateIsRunLikeAnyOther(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var runs atomic.Int64
		b, s := serve(t, handlers{"m": numbered(&runs)}, WithDedup(0, time.Minute))
		for i := range 3 {
			putRequest(b, sent(strconv.Itoa(i), "key"))
			settle()
		}
		wantSame(t, "run at once", runs.Load(), 3)
		putRequest(b, sent("4", "key", withBody("other")))
		pass(10 * time.Second)
		wantSame(t, "executions", runs.Load(), 4)
		wantSame(t, "replayed", s.Stats().Replayed, 0)
	})
}

type tenantKey struct{}

// tenants puts the tenant in a request's header into its context.
func tenants(next Handler) Handler {
	return func(ctx context.Context, req *Request) ([]byte, error) {
		tenant, _ := req.Header["token"].(string)
		return next(context.WithValue(ctx, tenantKey{}, tenant), req)
	}
}

func TestApplicationTellsTheScopeOfKeys(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var runs atomic.Int64
		scope := func(ctx context.Context, _ *Request) string {
			tenant, _ := ctx.Value(tenantKey{}).(string)
			return tenant
		}
		b, s := serve(t, handlers{"m": numbered(&runs)}, WithMiddleware(tenants), WithDedupScope(scope))
		for i, c := range []struct {
			tenant, user, replyTo, body string
			runs                        int64
		}{
			{"a", "gateway", rawQueue, "1", 1},
			{"a", "other gateway", otherReplies, "1", 1},
			{"b", "gateway", rawQueue, "2", 2},
			{"", "a", rawQueue, "3", 3}, // without a scope, the user with the same name counts
			{"", "a", otherReplies, "3", 3},
		} {
			msg := sent(strconv.Itoa(i), "key", withToken(c.tenant), ofUser(c.user), withBody(c.body), from(c.replyTo))
			putRequest(b, msg)
			settle()
			putRequest(b, with(msg, func(p *amqp.Publishing) { p.CorrelationId += " at the same time" }))
			pass(10 * time.Second)
			wantSame(t, "executions", runs.Load(), c.runs)
		}
		putLost(b, sent("0", "key", withToken("a"), ofUser("gateway"), withBody("1")))
		pass(10 * time.Second)
		wantSame(t, "executions", runs.Load(), 3)
		wantSame(t, "moved", s.Stats().Republished, 0) // the key was known
		pass(2 * time.Minute)
		putRequest(b, sent("9", "new", withToken("a")))
		pass(10 * time.Second)
		e := s.dedup
		wantSame(t, "known", e.stored.count()+len(e.running), 1)
		wantSame(t, "known calls", len(e.calls), 1)
	})
}

// A server's middleware may call the handler again, or several times at once.
func TestMiddlewareThatCallsTheHandlerAgain(t *testing.T) {
	t.Parallel()
	again := func(next Handler) Handler {
		return func(ctx context.Context, req *Request) ([]byte, error) {
			_, _ = next(ctx, req)
			return next(ctx, req)
		}
	}
	atOnce := func(next Handler) Handler {
		return func(ctx context.Context, req *Request) ([]byte, error) {
			first := make(chan struct{})
			go func() { // ends before the middleware returns
				defer close(first)
				_, _ = next(ctx, req)
			}()
			defer func() { <-first }()
			return next(ctx, req)
		}
	}
	for name, m := range map[string]Middleware{"again": again, "at once": atOnce} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				var runs atomic.Int64
				b, s := serve(t, handlers{"m": numbered(&runs)}, WithMiddleware(m))
				putRequest(b, sent("1", "key"))
				pass(10 * time.Second)
				wantSame(t, "executions", runs.Load(), 2)
				wantSame(t, "responses", len(takeResponses(b)), 1)
				e := s.dedup
				wantSame(t, "stored", e.stored.count(), 1)
				wantSame(t, "bytes", e.stored.bytes, e.stored.get(e.stored.first).size())
			})
		})
	}
}

func TestDrainWithDuplicatesThatWait(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		limit time.Duration
		want  error
	}{
		"in time": {time.Minute, nil}, "cut short": {100 * time.Millisecond, ErrDrainTimeout},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				var runs atomic.Int64
				b, s := serve(t, handlers{"m": counted(&runs, func(ctx context.Context, req *Request) ([]byte, error) {
					xsync.Sleep(ctx, 2*time.Second)
					return req.Body, ctx.Err()
				})}, WithWorkers(2), WithPrefetch(20), WithDrainTimeout(c.limit))
				for i := range 10 {
					putRequest(b, sent(strconv.Itoa(i), "key"))
				}
				settle()
				s.stop()
				wantIs(t, s.wait(t), c.want)
				settle()
				answered, left := len(takeResponses(b)), b.Ready(DefaultQueue)
				wantSame(t, "answered and left", answered+left, 10)
				wantSame(t, "answered", answered > 0, c.want == nil)
				wantSame(t, "executions", runs.Load(), 1)
			})
		})
	}
}

// For a method that runs at most once, the server answers a redelivered request with the stored
// response, through the middleware, or refuses the request.
func TestAtMostOnceIsAnsweredFromTheStore(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var runs atomic.Int64
		b := brokertest.New()
		b.With(func(b *brokertest.Broker) { _ = b.Declare(rawQueue, true, nil) })
		entered, leave := make(chan struct{}, 10), make(chan struct{}, 10)
		hold := func(next Handler) Handler {
			return func(ctx context.Context, req *Request) ([]byte, error) {
				entered <- struct{}{}
				<-leave
				return next(ctx, req)
			}
		}
		srv, err := NewServer(testURL, onBroker(b), WithMiddleware(hold), WithQueue(Queue{Name: "once"}))
		if err != nil {
			t.Fatal(err)
		}
		if err := srv.Handle("m", numbered(&runs), AtMostOnce()); err != nil {
			t.Fatal(err)
		}
		ctx, stop := context.WithCancel(t.Context())
		served := make(chan error, 1)
		go func() { served <- srv.Serve(ctx) }()
		ready(t, srv.WaitReady)
		lost := func(msg amqp.Publishing) {
			b.With(func(b *brokertest.Broker) {
				q := b.Queues["once"]
				q.Messages = append(q.Messages, &brokertest.Message{Msg: msg, Redelivered: true})
				b.Dispatch(q)
			})
		}
		b.PutIn("once", sent("1", "key"))
		leave <- struct{}{}
		pass(10 * time.Second)
		wantSame(t, "first", onlyResponse(t, b), "1")
		lost(sent("1", "key"))
		leave <- struct{}{}
		settle()
		wantSame(t, "from the store", onlyResponse(t, b), "1")
		wantSame(t, "middleware ran", len(entered), 2)
		lost(sent("1", "key"))
		settle()
		wantSame(t, "in the middleware", len(entered), 3)
		pass(2 * DefaultDedupAge) // the stored response expires
		leave <- struct{}{}
		settle()
		wantSame(t, "forgotten", onlyResponse(t, b), "unavailable")
		lost(sent("1", "key"))
		settle()
		wantSame(t, "unknown", onlyResponse(t, b), "unavailable")
		wantSame(t, "executions", runs.Load(), 1)
		stop()
		wantIs(t, <-served)
	})
}
