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

// run is one run of a handler.
type run struct {
	server      int
	redelivered bool
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
			runs := make(chan run, 16)
			release := make(chan struct{})
			var servers []*rig.Server
			for i := range 2 { // the second does not know what the first has run
				servers = append(servers, r.Serve(rig.Methods{"pay": func(_ context.Context, req *amqpx.Request) ([]byte, error) {
					runs <- run{i, req.Redelivered}
					<-release
					return req.Body, nil
				}}, together[0], together[1]))
			}
			client := r.Ready(together[0], together[1], amqpx.WithRetryBudget(0, 0))
			b.Ctl("eval", stallStore)
			var info amqpx.CallInfo
			done := begin(rig.Patience(t), client, "pay", []byte(strings.Repeat("x", 20000)), append(opts, amqpx.WithCallInfo(&info))...)
			first := rig.Recv(t, runs, "the handler to run, before the broker confirmed")
			crashQueue(b, r.Queue.Name)
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
			servers[first.server].Close() // which would know a second request for the one that it runs
			if again := rig.Recv(t, runs, "the call to run at the other server"); again.server == first.server || !again.redelivered {
				t.Errorf("then %+v ran it, want the other server, and a mark", again)
			}
			close(release)
			if got := rig.Recv(t, done, "the answer"); got.err != nil {
				t.Errorf("got %v, want the answer", got.err)
			}
		})
	}
}
