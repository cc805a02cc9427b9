//go:build integration

package integration

import (
	"fmt"
	"strings"
	"testing"

	"rabbitmq-rpc/pkg/amqpx"
	"rabbitmq-rpc/test/internal/rig"
)

// stallStore suspends the process that writes persistent messages to the disk, so that the
// broker confirms none, until crashQueue.
const stallStore = `register(stall, spawn(fun() ->
	S = rabbit_vhost_msg_store:vhost_store_pid(<<"/">>, msg_store_persistent),
	true = erlang:suspend_process(S),
	receive {crash, Name} ->
		{ok, Q} = rabbit_amqqueue:lookup(rabbit_misc:r(<<"/">>, queue, Name)),
		exit(amqqueue:get_pid(Q), kill),
		true = erlang:resume_process(S)
	end
end)).`

// crashQueue kills the process of a queue while its messages are unconfirmed, and lets the
// broker write again.
func crashQueue(b *rig.Broker, queue string) {
	b.Ctl("eval", fmt.Sprintf(`stall ! {crash, <<"%s">>}.`, queue))
}

// RabbitMQ hands a persistent message out before it confirms it, and nacks it when the
// process of its queue ends in between: the call runs, and its nack says nothing.
func TestNackIsNoProof(t *testing.T) {
	t.Parallel()
	b := rig.StartBroker(t)
	for name, opts := range map[string][]amqpx.CallOption{"not idempotent": nil, "idempotent": {amqpx.Idempotent()}} {
		t.Run(name, func(t *testing.T) {
			r := rig.On(t, b.URL)
			together := []amqpx.Option{amqpx.WithPersistent(true), amqpx.WithBatch(amqpx.BatchOff)}
			pay := hold()
			for range 2 { // the second does not know what the first has run
				r.Serve(rig.Methods{"pay": pay.handle}, together[0], together[1])
			}
			client := r.Ready(together[0], together[1], amqpx.WithRetryBudget(0, 0))
			b.Ctl("eval", stallStore)
			var info amqpx.CallInfo
			done := begin(rig.Patience(t), client, "pay", []byte(strings.Repeat("x", 20000)), append(opts, amqpx.WithCallInfo(&info))...)
			rig.Recv(t, pay.entered, "the handler to run, before the broker confirmed")
			crashQueue(b, r.Queue.Name)
			if opts == nil {
				got := rig.Recv(t, done, "the call to end by the nack")
				if amqpx.OutcomeOf(got.err) != amqpx.MayHaveRun || amqpx.CodeOf(got.err) == amqpx.CodeDeadlineExceeded {
					t.Errorf("told %v, want at once that it may have run", got.err)
				}
				if info.Attempts != 1 {
					t.Errorf("sent %d times, want once: it may have run", info.Attempts)
				}
				close(pay.release)
				return
			}
			if again := rig.Recv(t, pay.entered, "the call to be sent again"); !again.Redelivered {
				t.Error("the second run is not marked")
			}
			close(pay.release)
			if got := rig.Recv(t, done, "the answer"); got.err != nil {
				t.Errorf("got %v, want the answer", got.err)
			}
		})
	}
}
