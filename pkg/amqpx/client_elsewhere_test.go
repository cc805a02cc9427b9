package amqpx

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"
)

// rolling starts servers of which only the last has the method "new", and a client.
func rolling(t *testing.T, servers int, log *zap.Logger, opts ...Option) *rig {
	t.Helper()
	r := &rig{t: t, broker: newFakeBroker()}
	serverOpts := []ServerOption{WithLogger(log)}
	clientOpts := []ClientOption{WithLogger(log), WithRetryBudget(0, 0)}
	for _, o := range opts {
		serverOpts, clientOpts = append(serverOpts, o), append(clientOpts, o)
	}
	for i := range servers {
		methods := handlers{"old": echo, "open the lane": echo}
		if i == servers-1 {
			methods["new"] = echo
		}
		ready(t, startServer(t, r.broker, methods, serverOpts...).WaitReady)
	}
	r.client = startClient(t, r.broker, clientOpts...)
	ready(t, r.client.WaitReady)
	return r
}

func TestMethodOfOneServerIsFound(t *testing.T) {
	t.Parallel()
	for name, opts := range map[string][]CallOption{"": nil, "idempotent": {Idempotent()}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				core, logs := observer.New(zapcore.WarnLevel)
				r := rolling(t, 3, zap.New(core), WithBatch(BatchAuto))
				r.openLane()
				var waiting []<-chan result
				for i := range 500 {
					waiting = append(waiting, goCall(r.client, within(t, time.Minute), "new", fmt.Append(nil, i), opts...))
				}
				waiting = append(waiting, r.batchOf(20, "new", opts...)...)
				for i, done := range waiting {
					wantAnswer(t, <-done, fmt.Sprint(i%500))
				}
				wantSame(t, "lines of servers without it", logs.FilterMessage("request for a method that this server does not have").Len(), 2)
				wantSame(t, "lines of the client", logs.FilterMessage("no server has the method").Len(), 0)
			})
		})
	}
}

func TestMethodOfNoServerFailsSoon(t *testing.T) {
	t.Parallel()
	for servers, most := range map[int]int{1: 1, 2: 20, 4: elsewhereMax} {
		t.Run(fmt.Sprint(servers), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				core, logs := observer.New(zapcore.WarnLevel)
				r := rolling(t, servers, zap.New(core))
				wantAnswer(t, <-goCall(r.client, within(t, time.Minute), "old", nil), "")
				for range 10 {
					var info CallInfo
					got := <-goCall(r.client, within(t, time.Minute), "nothing", nil, WithCallInfo(&info))
					wantSame(t, "code", CodeOf(got.err), CodeUnimplemented)
					wantSame(t, "outcome", OutcomeOf(got.err), DidNotRun)
					if info.Attempts < servers && logs.FilterMessage("no server has the method").Len() == 0 || info.Attempts > most {
						t.Errorf("tried %d times", info.Attempts)
					}
					if limit := time.Duration(servers-1) * 200 * time.Millisecond; got.took > limit {
						t.Errorf("took %v, want at most %v", got.took, limit)
					}
					most = 1 // it is known for a while
				}
				wantSame(t, "lines of the client", logs.FilterMessage("no server has the method").Len(), 1)
			})
		})
	}
}

// What a handler itself calls unimplemented has run.
func TestHandlersUnimplementedIsFinal(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		fails := func(context.Context, *Request) ([]byte, error) { return nil, Errorf(CodeUnimplemented, "no") }
		r := startRig(t, handlers{"m": fails})
		ready(t, startServer(t, r.broker, handlers{"m": fails}).WaitReady)
		var info CallInfo
		got := <-goCall(r.client, within(t, time.Minute), "m", nil, Idempotent(), WithCallInfo(&info))
		wantSame(t, "code", CodeOf(got.err), CodeUnimplemented)
		wantSame(t, "outcome", OutcomeOf(got.err), Ran)
		wantSame(t, "attempts", info.Attempts, 1)
	})
}

// Servers in other languages do not say who they are: the tries are bounded by their number.
func TestNamelessServersAreTriedABoundedNumberOfTimes(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newFakeBroker()
		no := func(_ int, d amqp.Delivery, send func(amqp.Publishing)) {
			in, _ := decodeRequest(&d, "")
			send(encodeError(in, refusal(CodeUnimplemented, "no"), timing{}, false))
		}
		for range 3 {
			startScript(t, b, no)
		}
		c := startClient(t, b)
		ready(t, c.WaitReady)
		var info CallInfo
		got := <-goCall(c, within(t, time.Minute), "m", nil, WithCallInfo(&info))
		wantSame(t, "code", CodeOf(got.err), CodeUnimplemented)
		wantSame(t, "attempts", info.Attempts, 2*3)
	})
}
