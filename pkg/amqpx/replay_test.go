package amqpx

import (
	"context"
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

// keyed returns a request with an idempotency key.
func keyed(method, key, correlationID string) amqp.Publishing {
	return with(request(method), func(p *amqp.Publishing) {
		p.MessageId, p.CorrelationId, p.Type = key, correlationID, wire.TypeRequest
	})
}

// numbered returns a handler that answers with the number of its run: 1, 2, 3.
func numbered(runs *atomic.Int64) Handler {
	return func(ctx context.Context, _ *Request) ([]byte, error) {
		n := runs.Add(1)
		xsync.Sleep(ctx, time.Second)
		return []byte(strconv.FormatInt(n, 10)), nil
	}
}

func TestDuplicateGetsTheResponseOfTheRequestItRepeats(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name    string
		between time.Duration
	}{
		{"while it runs", 500 * time.Millisecond},
		{"after it ended", 10 * time.Second},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				var runs atomic.Int64
				b, s := serve(t, handlers{"m": numbered(&runs)})
				putRequest(b, keyed("m", "key", "first"))
				pass(c.between)
				putRequest(b, keyed("m", "key", "second"))
				pass(10 * time.Second)
				responses := takeResponses(b)
				wantSame(t, "responses", len(responses), 2)
				for _, a := range responses {
					wantSame(t, "answer", string(a.Body), "1")
				}
				if a, b := responses[0].CorrelationId, responses[1].CorrelationId; a == b {
					t.Errorf("both responses are for %q", a)
				}
				wantSame(t, "executions", runs.Load(), 1)
				wantSame(t, "replayed", s.Stats().Replayed, 1)
				wantSame(t, "in flight", s.Stats().InFlight, 0)
				wantSame(t, "unacknowledged", b.Unacked(DefaultQueue), 0)
			})
		})
	}
}

func TestOneCallSentTwiceGetsOneResponse(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var runs atomic.Int64
		b, s := serve(t, handlers{"m": numbered(&runs)})
		for range 3 {
			putRequest(b, keyed("m", "key", "one"))
		}
		pass(10 * time.Second)
		wantSame(t, "responses", len(takeResponses(b)), 1)
		wantSame(t, "executions", runs.Load(), 1)
		wantSame(t, "in flight", s.Stats().InFlight, 0)
		wantSame(t, "unacknowledged", b.Unacked(DefaultQueue), 0)
	})
}

// A client with direct reply-to that has lost its connection sends a request again with another
// address. A server that has lost its connection too publishes the earlier request again, behind the
// later one, so the order does not tell which address is alive: both get the response.
func TestOneCallSentTwiceWithDirectAddressesGetsTheResponseAtBoth(t *testing.T) {
	t.Parallel()
	const id = "11111111-2222-4333-8444-555555555555"
	earlier, later := deadNode, strings.TrimSuffix(deadNode, "==")+"AA"
	from := func(replyTo string, again bool) func(*amqp.Publishing) {
		return func(p *amqp.Publishing) {
			p.Type, p.CorrelationId, p.ReplyTo, p.UserId = wire.TypeIdempotentRequest, id, replyTo, "app"
			if again {
				p.Headers = amqp.Table{wire.HeaderResent: true}
			}
		}
	}
	for name, order := range map[string][]func(*amqp.Publishing){
		"in the order of sending": {from(earlier, false), from(later, true), from(later, true)},
		"the earlier last":        {from(later, true), from(later, true), from(earlier, false)},
		"the earlier between":     {from(later, true), from(earlier, false), from(later, true)},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				var runs atomic.Int64
				b, _ := serve(t, handlers{"m": counted(&runs, slow)})
				for _, change := range order {
					putRequest(b, with(request("m"), change))
					settle()
				}
				pass(time.Minute)
				wantSame(t, "executions", runs.Load(), 1)
				responses := make(map[string]int)
				for _, m := range b.MessagesTo(brokertest.RouteReplies) {
					responses[m.Key]++
				}
				wantSame(t, "responses", fmt.Sprint(responses), fmt.Sprint(map[string]int{earlier: 1, later: 1}))
				wantSame(t, "unacknowledged", b.Unacked(DefaultQueue), 0)
			})
		})
	}
}

func TestWhatCountsAsADuplicate(t *testing.T) {
	t.Parallel()
	budget := func(p *amqp.Publishing) { p.Headers = amqp.Table{wire.HeaderTimeout: int64(60_000)} }
	for _, c := range []struct {
		name          string
		first, second amqp.Publishing
		runs          int64
	}{
		{"same key, other method", keyed("m", "key", "1"), keyed("n", "key", "1"), 2},
		{"other key", keyed("m", "key", "1"), keyed("m", "other", "1"), 2},
		{"no key, and a caller that may use its correlation id again", request("m"), request("m"), 2},
		{"no key, and a caller that follows the contract", with(request("m"), budget), with(request("m"), budget), 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				var runs atomic.Int64
				b, _ := serve(t, handlers{"m": numbered(&runs), "n": numbered(&runs)})
				putRequest(b, c.first)
				pass(2 * time.Second)
				putRequest(b, c.second)
				pass(2 * time.Second)
				wantSame(t, "executions", runs.Load(), c.runs)
				wantSame(t, "responses", len(takeResponses(b)), 2)
			})
		})
	}
}

// A coded error is final and stored. The error of a panic, or of a handler cut off by its caller's
// deadline, is not.
func TestWhichErrorsAreStored(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name string
		h    Handler
		runs int64
	}{
		{"coded", func(context.Context, *Request) ([]byte, error) { return nil, Errorf(CodeNotFound, "none") }, 1},
		{"panic", func(context.Context, *Request) ([]byte, error) { panic("x") }, 2},
		{"cut off by the deadline", untilDone, 2},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				var runs atomic.Int64
				b, _ := serve(t, handlers{"m": counted(&runs, c.h)})
				for range 2 {
					putRequest(b, with(keyed("m", "key", "id"), func(p *amqp.Publishing) { p.Headers = amqp.Table{wire.HeaderTimeout: int64(1000)} }))
					pass(5 * time.Second)
				}
				responses := takeResponses(b)
				wantSame(t, "responses", len(responses), 2)
				wantSame(t, "code of the second", responses[1].Headers[wire.HeaderCode], responses[0].Headers[wire.HeaderCode])
				wantSame(t, "text of the second", string(responses[1].Body), string(responses[0].Body))
				wantSame(t, "executions", runs.Load(), c.runs)
			})
		})
	}
}

func TestStoredResponsesAreBounded(t *testing.T) {
	t.Parallel()
	const big = 1000
	for _, c := range []struct {
		name  string
		opt   ServerOption
		after time.Duration
		runs  int64 // of 3 requests and the same 3 again, from the last
	}{
		{"enough room", WithDedup(10*(big+entryOverhead), time.Minute), 0, 3},
		{"room for two", WithDedup(2*(big+entryOverhead+len(rawQueue)+10), time.Minute), 0, 4},
		{"room for less than one", WithDedup(big, time.Minute), 0, 6},
		{"none", WithDedup(0, time.Minute), 0, 6},
		{"too old", WithDedup(1<<20, time.Minute), 2 * time.Minute, 6},
		{"young enough", WithDedup(1<<20, time.Minute), 50 * time.Second, 3},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				var runs atomic.Int64
				body := []byte(strings.Repeat("x", big))
				b, s := serve(t, handlers{"m": counted(&runs, func(context.Context, *Request) ([]byte, error) { return body, nil })}, c.opt)
				for _, id := range []string{"1", "2", "3"} {
					putRequest(b, keyed("m", id, id))
					settle()
				}
				pass(c.after)
				for _, id := range []string{"3", "2", "1"} {
					putRequest(b, keyed("m", id, id))
					settle()
				}
				wantSame(t, "executions", runs.Load(), c.runs)
				wantSame(t, "responses", len(takeResponses(b)), 6)
				if e := s.dedup; e.stored.bytes > e.maxBytes || e.stored.bytes < 0 || e.stored.count() > 3 || len(e.running) > 0 {
					t.Errorf("stored: %d bytes of %d, %d requests, %d running", e.stored.bytes, e.maxBytes, e.stored.count(), len(e.running))
				}
			})
		})
	}
}

// When a response is lost with its connection, the server sends the stored response again,
// without another run, to callers that follow the contract.
func TestRequestThatComesBackAfterALossOfTheConnectionIsNotRunAgain(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name string
		lose func(r *rig)
	}{
		{"while the handler runs", func(r *rig) { r.cutServer() }},
		{"before the response was confirmed", func(r *rig) {
			r.broker.Fail(brokertest.RouteReplies, brokertest.FaultLostUnconfirmed)
			pass(5 * time.Second)
		}},
		{"before the request was acknowledged", func(r *rig) {
			r.broker.Fail(brokertest.RouteReplies, brokertest.FaultCutConfirmed)
			pass(5 * time.Second)
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				var runs atomic.Int64
				r := startRig(t, handlers{"m": counted(&runs, slow)})
				done := goCall(r.client, within(t, time.Minute), "m", []byte("body"))
				settle()
				c.lose(r)
				wantResponse(t, <-done, "body")
				pass(10 * time.Second)
				wantSame(t, "executions", runs.Load(), 1)
				wantSame(t, "in flight", r.server.Stats().InFlight, 0)
				wantSame(t, "left", r.broker.Ready(DefaultQueue)+r.broker.Unacked(DefaultQueue), 0)
			})
		})
	}
}

// cutServer breaks the server's connections, and leaves the client's connections open.
func (r *rig) cutServer() {
	r.broker.With(func(b *brokertest.Broker) {
		for _, l := range append([]*brokertest.Conn(nil), b.Links...) {
			if strings.Contains(l.Name, "server") {
				l.End(brokertest.BrokenSocket())
			}
		}
	})
}
