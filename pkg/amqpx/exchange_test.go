package amqpx

import (
	"strconv"
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

// startWithExchange starts a server, and then a client, which finds the exchange.
func startWithExchange(t *testing.T, exchange string, methods handlers, batch BatchMode, opts ...ClientOption) *rig {
	t.Helper()
	r := &rig{t: t, broker: brokertest.New()}
	r.server = startServer(t, r.broker, methods, WithBatch(batch))
	ready(t, r.server.WaitReady)
	r.client = startClient(t, r.broker, append([]ClientOption{WithExchange(exchange), WithBatch(batch)}, opts...)...)
	ready(t, r.client.WaitReady)
	return r
}

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

// The bindings of a queue that cannot be bound do not cost the other queues theirs.
func TestQueueThatCannotBeBoundAmongOthers(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := startRig(t, handlers{"m": echo}, WithShards(3), WithBatch(BatchAuto))
		r.broker.With(func(b *brokertest.Broker) {
			delete(b.Directs, testExchange)
			b.OnCall = func(op, name string) error {
				if op == "bind" && name == DefaultQueue {
					return &amqp.Error{Code: amqp.NotFound, Server: true, Reason: "NOT_FOUND - no queue"}
				}
				return nil
			}
		})
		pass(exchangeAgain)
		r.broker.With(func(b *brokertest.Broker) {
			wantSame(t, "keys", len(b.Directs[testExchange]), 5) // of three shards with their batch queues, except one
			b.OnCall = nil
		})
		pass(exchangeAgain)
		r.broker.With(func(b *brokertest.Broker) { wantSame(t, "keys", len(b.Directs[testExchange]), 6) })
		wantSame(t, "reconnects", r.server.Stats().Reconnects, 0)
	})
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
		opts   []ClientOption
		want   string
	}{
		"default":         {"", nil, ""},
		"auto":            {ExchangeAuto, nil, testExchange},
		"name":            {testExchange, nil, testExchange},
		"direct reply-to": {testExchange, []ClientOption{WithReplyMode(ReplyDirect)}, testExchange},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				r := startWithExchange(t, c.option, handlers{"m": echo, "start batching": echo}, BatchAuto, c.opts...)
				r.awaitBatching()
				for i, call := range r.batchOf(3, "m") {
					wantResponse(t, <-call, strconv.Itoa(i))
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

// A client with the name of an exchange fails without the exchange, and does not use another.
func TestClientWithoutItsExchange(t *testing.T) {
	t.Parallel()
	for _, shards := range []int{1, 2} {
		t.Run(strconv.Itoa(shards)+" shards", func(t *testing.T) {
			t.Parallel()
			clientWithoutItsExchange(t, shards)
		})
	}
}

func clientWithoutItsExchange(t *testing.T, shards int) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.New()
		b.With(func(b *brokertest.Broker) {
			for i := range shards {
				_ = b.Declare(Queue{Name: DefaultQueue}.shard(i).Name, true, nil)
			}
		})
		client := startClient(t, b, WithExchange(testExchange), WithBatch(BatchAuto), WithShards(shards))
		ready(t, client.WaitReady)
		failed := <-goCall(client, within(t, time.Minute), "m", nil)
		wantIs(t, failed.err, ErrUnroutable)
		wantSame(t, "outcome", OutcomeOf(failed.err), DidNotRun)
		if want := `no exchange "` + testExchange + `"`; failed.err == nil || !strings.Contains(failed.err.Error(), want) {
			t.Errorf("error %v, want %q", failed.err, want)
		}
		if failed.took > 2*checkTimeout {
			t.Errorf("the call failed after %v", failed.took)
		}
		looks := 0
		b.With(func(b *brokertest.Broker) {
			b.OnCall = func(op, name string) error {
				if op == "look for exchange" && name == testExchange {
					looks++
				}
				return nil
			}
		})
		waits := goCall(client, within(t, time.Hour), "m", []byte("1"), WaitForServer())
		pass(5 * time.Minute)
		if looks < 10 || looks > 120 {
			t.Errorf("%d looks for the exchange in 5 minutes", looks)
		}
		s := startServer(t, b, handlers{"m": echo}, WithShards(shards))
		ready(t, s.WaitReady)
		pass(exchangeLookMax)
		wantResponse(t, <-waits, "1")
		wantResponse(t, <-goCall(client, within(t, time.Minute), "m", []byte("2")), "2")
		var exchanges []string
		for i := range shards {
			exchanges = append(exchanges, exchangesOf(b, Queue{Name: DefaultQueue}.shard(i).Name)...)
		}
		wantSame(t, "exchanges", strings.Join(exchanges, " "), testExchange+" "+testExchange)
	})
}

// A queue of earlier servers exists and is not bound.
func TestQueueThatIsNotBound(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.New()
		b.With(func(b *brokertest.Broker) {
			_ = b.Declare(DefaultQueue, true, nil)
			b.Directs[testExchange] = brokertest.Bindings{}
		})
		client := startClient(t, b, WithExchange(ExchangeAuto))
		ready(t, client.WaitReady)
		failed := <-goCall(client, within(t, time.Minute), "m", nil)
		wantIs(t, failed.err, ErrUnroutable)
		want := `no queue is bound to exchange "` + testExchange + `" with key "` + DefaultQueue + `"`
		if failed.err == nil || !strings.Contains(failed.err.Error(), want) {
			t.Errorf("error %v, want %q", failed.err, want)
		}
	})
}

// The exchange is deleted while clients use it. The server declares it again.
func TestExchangeIsDeleted(t *testing.T) {
	t.Parallel()
	for option, want := range map[string]string{ExchangeAuto: "", testExchange: testExchange} {
		t.Run(option, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				r := startWithExchange(t, option, handlers{"m": echo}, BatchOff)
				wantResponse(t, <-goCall(r.client, within(t, time.Minute), "m", []byte("1")), "1")
				r.broker.With(func(b *brokertest.Broker) {
					delete(b.Directs, testExchange)
					b.Sent = nil
				})
				wantResponse(t, <-goCall(r.client, within(t, time.Minute), "m", []byte("2"), Idempotent()), "2")
				wantSame(t, "exchanges", strings.Join(exchangesOf(r.broker, DefaultQueue), " "), want)
				if n := r.client.Stats().Reconnects; n > 2 {
					t.Errorf("%d reconnects", n)
				}
			})
		})
	}
}

// A user who may not publish is told at the set-up, and not by the end of each connection.
func TestClientThatMayNotPublish(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.New()
		b.OnCall = func(op, _ string) error {
			if op == "publish" {
				return &amqp.Error{Code: amqp.AccessRefused, Server: true, Reason: "ACCESS_REFUSED - write access to exchange 'amq.default' refused"}
			}
			return nil
		}
		client := startClient(t, b, WithExchange(ExchangeAuto))
		pass(time.Minute)
		st := client.Status()
		wantSame(t, "fault", st.Fault, FaultPermission)
		if n := len(b.Dials); n > 30 {
			t.Errorf("%d dials in a minute", n)
		}
	})
}

func TestExchangeNames(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"amq.default", strings.Repeat("x", 256)} {
		if _, err := NewClient(testURL, WithExchange(name)); err == nil {
			t.Errorf("exchange %q was accepted", name)
		}
	}
}

func TestUserInTheNameOfAReplyQueue(t *testing.T) {
	t.Parallel()
	for user, want := range map[string]string{
		"":                        "",
		"orders":                  "orders",
		"svc.orders":              "svc%2Eorders",
		"a b/ü":                   "a%20b%2F%C3%BC",
		strings.Repeat("u", 64):   strings.Repeat("u", 64),
		strings.Repeat("u", 65):   "~f20e249d15fa4b9f44ba21d154f62e1e",
		"O=Acme, CN=" + "x" + "%": "O%3DAcme%2C%20CN%3Dx%25",
	} {
		wantSame(t, "name of "+user, userInName(user), want)
		name := Queue{Name: "q"}.newReplyQueueName(user)
		prefix := "q.reply."
		if user != "" {
			prefix += want + "."
		}
		if rest, ok := strings.CutPrefix(name, prefix); !ok || len(rest) != len(someUUID) {
			t.Errorf("reply queue %q of user %q", name, user)
		}
	}
	long := Queue{Name: strings.Repeat("q", maxQueueName)}
	wantSame(t, "bytes of the longest name", len(long.newReplyQueueName("orders")), 255)
}

// The reply queue has the name of the user, and another name when the user changes.
func TestReplyQueueFollowsTheUser(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.New()
		b.User = "first"
		s := startServer(t, b, handlers{"m": echo}, WithReplyPrefix("{queue}.reply.{user}."))
		client := startClient(t, b)
		ready(t, s.WaitReady)
		for _, user := range []string{"first", "second"} {
			b.With(func(b *brokertest.Broker) { b.User = user })
			b.Kick(brokertest.BrokenSocket())
			pass(10 * time.Second)
			wantResponse(t, <-goCall(client, within(t, time.Minute), "m", []byte(user)), user)
			if !strings.HasPrefix(client.route.replyTo, DefaultQueue+".reply."+user+".") {
				t.Errorf("reply queue %q of user %q", client.route.replyTo, user)
			}
		}
	})
}
