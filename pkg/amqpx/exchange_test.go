package amqpx

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
	"go.uber.org/zap"

	"rabbitmq-rpc/pkg/amqpx/internal/brokertest"
)

const testExchange = DefaultQueue + ".rpc"

// exchangesOf returns the exchanges to which the requests with a key were published.
func exchangesOf(b *brokertest.Broker, key string) (exchanges []string) {
	for _, m := range b.MessagesTo(key) {
		exchanges = append(exchanges, m.Exchange)
	}
	return exchanges
}

// withExchange is WithExchange for a client beside a server.
func withExchange(name string) Option { return onlyClient{WithExchange(name)} }

type onlyClient struct{ ClientOption }

func (onlyClient) applyServer(*serverConfig) {}

func TestServerBindsOnlyQueuesOfRequests(t *testing.T) {
	t.Parallel()
	for mode, want := range map[BatchMode][]string{
		BatchOff:  {DefaultQueue},
		BatchAuto: {DefaultQueue, DefaultQueue + ".batch"},
	} {
		t.Run(string(mode), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				r := startRig(t, handlers{"m": echo}, WithBatch(mode), WithControl(true))
				wantBound := func() {
					t.Helper()
					r.broker.With(func(b *brokertest.Broker) {
						wantSame(t, "keys", len(b.Directs[testExchange]), len(want))
						for _, queue := range want {
							wantSame(t, "queues of "+queue, strings.Join(b.Directs[testExchange][queue], " "), queue)
						}
					})
				}
				wantBound()
				r.broker.With(func(b *brokertest.Broker) { delete(b.Directs, testExchange) })
				pass(exchangeAgain)
				wantBound()
			})
		})
	}
}

// A server that cannot use the exchange logs this once and serves on.
func TestServerWithoutTheExchange(t *testing.T) {
	t.Parallel()
	for name, prepare := range map[string]func(*brokertest.Broker){
		"another type": func(b *brokertest.Broker) { b.Fanouts[testExchange] = []string{} },
		"no permission": func(b *brokertest.Broker) {
			b.OnCall = func(op, _ string) error {
				if op == "declare exchange" {
					return &amqp.Error{Code: amqp.AccessRefused, Server: true, Reason: "ACCESS_REFUSED - configure access to exchange refused"}
				}
				return nil
			}
		},
		"no answer": func(b *brokertest.Broker) {
			b.OnCall = func(op, _ string) error {
				if op == "declare exchange" {
					return brokertest.ErrHang
				}
				return nil
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				b := brokertest.New()
				prepare(b)
				log, logs := observed(zap.WarnLevel)
				s := startServer(t, b, handlers{"m": echo}, WithBatch(BatchAuto), WithLogger(log))
				client := startClient(t, b, WithBatch(BatchAuto))
				ready(t, s.WaitReady)
				ready(t, client.WaitReady)
				pass(10 * exchangeAgain)
				wantResponse(t, <-goCall(client, within(t, time.Minute), "m", []byte("1")), "1")
				wantSame(t, "reconnects", s.Stats().Reconnects+client.Stats().Reconnects, 0)
				warned := logs.FilterMessageSnippet("request exchange").Len()
				wantSame(t, "warned", warned, map[string]int{"another type": 1, "no permission": 1, "no answer": 0}[name])
			})
		})
	}
}

func TestClientPublishesToTheExchange(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		option string
		opts   []Option
		want   string
	}{
		"default":         {"", nil, ""},
		"auto":            {ExchangeAuto, nil, testExchange},
		"name":            {testExchange, nil, testExchange},
		"direct reply-to": {testExchange, []Option{onlyClient{WithReplyMode(ReplyDirect)}}, testExchange},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				r := startRig(t, handlers{"m": echo, "open the lane": echo}, append(c.opts, WithBatch(BatchAuto), withExchange(c.option))...)
				r.openLane()
				for i, call := range r.batchOf(3, "m") {
					wantSame(t, "error of call", (<-call).err, nil)
					_ = i
				}
				wantResponse(t, <-goCall(r.client, within(t, time.Minute), "m", []byte("alone")), "alone")
				for _, key := range []string{DefaultQueue, DefaultQueue + ".batch"} {
					all := exchangesOf(r.broker, key)
					if len(all) == 0 {
						t.Errorf("no message to %q", key)
					}
					for _, got := range all {
						wantSame(t, "exchange of a message to "+key, got, c.want)
					}
				}
				for _, got := range exchangesOf(r.broker, brokertest.RouteReplies) {
					wantSame(t, "exchange of a response", got, "")
				}
			})
		})
	}
}
