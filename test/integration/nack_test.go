//go:build integration

package integration

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"rabbitmq-rpc/pkg/amqpx"
	"rabbitmq-rpc/test/internal/rig"
)

// stallStore suspends the process that writes persistent messages to the disk, until
// crashQueue is called. Meanwhile the broker confirms no persistent message.
func stallStore(b *rig.Broker, queue string) {
	b.Ctl("eval", fmt.Sprintf(`spawn(fun() ->
		S = rabbit_vhost_msg_store:vhost_store_pid(<<"/">>, msg_store_persistent),
		true = erlang:suspend_process(S),
		Find = fun(Name) -> rabbit_amqqueue:lookup(rabbit_misc:r(<<"/">>, queue, Name)) end,
		Wait = fun(F, 0) -> late; (F, N) -> case Find(<<"%[1]s%[2]s">>) of
			{ok, _} -> {ok, Q} = Find(<<"%[1]s">>), exit(amqqueue:get_pid(Q), kill);
			_ -> timer:sleep(20), F(F, N - 1)
		end end,
		Wait(Wait, 5000),
		true = erlang:resume_process(S)
	end).`, queue, crashes))
}

// crashes is a suffix: declaring a queue with this suffix crashes the queue without it.
// rabbitmqctl would take too long while a request waits.
const crashes = ".crash"

// crashQueue kills the process of a queue while its messages are unconfirmed, and lets the
// broker write again.
func crashQueue(t *testing.T, r *rig.Rig) {
	t.Helper()
	if _, err := r.Raw().QueueDeclare(r.Queue.Name+crashes, false, true, true, false, nil); err != nil {
		t.Fatal(err)
	}
}

// run is an execution of a handler.
type run struct {
	server      int
	redelivered bool
}

// nackIsNoProof makes a broker nack running requests: RabbitMQ delivers a persistent message
// before its confirm, and nacks it if the queue's process ends in between.
func nackIsNoProof(t *testing.T, b *rig.Broker) {
	t.Helper()
	for name, opts := range map[string][]amqpx.CallOption{"not idempotent": nil, "idempotent": {amqpx.Idempotent()}} {
		t.Run(name, func(t *testing.T) {
			r := rig.On(t, b.URL)
			together := []amqpx.Option{amqpx.WithPersistent(true), amqpx.WithBatch(amqpx.BatchOff)}
			runs := make(chan run, 16)
			release := make(chan struct{})
			var servers []*rig.Server
			for i := range 2 { // the second server does not know the first's executions
				servers = append(servers, r.Serve(rig.Methods{"pay": func(_ context.Context, req *amqpx.Request) ([]byte, error) {
					runs <- run{i, req.Redelivered}
					<-release
					return req.Body, nil
				}}, together[0], together[1]))
			}
			client := r.Ready(together[0], together[1], amqpx.WithRetryBudget(0, 0))
			stallStore(b, r.Queue.Name)
			var info amqpx.CallInfo
			done := begin(rig.Patience(t), client, "pay", []byte(strings.Repeat("x", 20000)), append(opts, amqpx.WithCallInfo(&info))...)
			first := rig.Recv(t, runs, "the handler to run, before the broker confirmed")
			crashQueue(t, r)
			if opts == nil {
				got := rig.Recv(t, done, "the call to end by the nack")
				if amqpx.OutcomeOf(got.err) != amqpx.MayHaveRun || amqpx.CodeOf(got.err) == amqpx.CodeDeadlineExceeded {
					t.Errorf("told %v, want at once that it may have run", got.err)
				}
				if info.Attempts != 1 {
					t.Errorf("sent %d times, want once: it may have run", info.Attempts)
				}
				close(release)
				return
			}
			servers[first.server].Close() // this server would recognise a repeated request as a duplicate
			if again := rig.Recv(t, runs, "the call to run at the other server"); again.server == first.server || !again.redelivered {
				t.Errorf("then %+v ran it, want the other server, and a mark", again)
			}
			close(release)
			if got := rig.Recv(t, done, "the response"); got.err != nil {
				t.Errorf("got %v, want the response", got.err)
			}
		})
	}
}
