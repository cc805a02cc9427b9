//go:build integration

package integration

import (
	"context"
	"errors"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"rabbitmq-rpc/pkg/amqpx"
	"rabbitmq-rpc/test/internal/rig"
)

// TestBrokerInTrouble fills, restarts, kills and freezes a private broker. The parts share the
// broker and run in sequence.
func TestBrokerInTrouble(t *testing.T) {
	t.Parallel()
	broker := rig.StartBroker(t)
	if rig.Major() != "3" {
		t.Run("limits of the node", func(t *testing.T) { nodeLimits(t, broker) })
	}
	t.Run("alarm", func(t *testing.T) { brokerBlocks(t, broker) })
	t.Run("alarm on a shared connection", func(t *testing.T) { sharedWhileTheBrokerBlocks(t, broker) })
	t.Run("alarm under a drain", func(t *testing.T) { drainWhileTheBrokerBlocks(t, broker) })
	t.Run("nack of what runs", func(t *testing.T) { nackIsNoProof(t, broker) })
	t.Run("queue that stopped", func(t *testing.T) { queueThatStoppedIsNoOverload(t, broker) })
	t.Run("restart", func(t *testing.T) {
		brokerGoes(t, broker, amqpx.Idempotent(), func() { broker.Do("restart") })
	})
	t.Run("killed", func(t *testing.T) {
		brokerGoes(t, broker, amqpx.Idempotent(), func() {
			broker.Do("kill")
			broker.Do("start")
		})
	})
	t.Run("restart under calls that run at most once", func(t *testing.T) {
		brokerGoes(t, broker, nil, func() { broker.Do("restart") })
	})
	t.Run("frozen", func(t *testing.T) { brokerFreezes(t, broker) })
}

// brokerBlocks raises the memory alarm. Calls must end within their deadlines with the reason,
// and succeed again after the alarm.
func brokerBlocks(t *testing.T, broker *rig.Broker) {
	t.Helper()
	r := rig.On(t, broker.URL)
	server := r.Serve(rig.Methods{"b": letter})
	client := r.Ready()
	rig.Call(t, client, "b", nil)

	broker.Ctl("set_vm_memory_high_watermark", "0.0001")
	// The broker informs a connection only when it publishes, and may still accept this
	// message.
	const timeout = 500 * time.Millisecond
	var err error
	for range 20 {
		begun := time.Now()
		_, err = client.Call(rig.Within(t, timeout), "b", nil)
		if took := time.Since(begun); took > 10*timeout {
			t.Errorf("the call took %v, its deadline is %v", took, timeout)
		}
		if errors.Is(err, amqpx.ErrBlocked) {
			break
		}
	}
	want{code: amqpx.CodeDeadlineExceeded, is: []error{amqpx.ErrBlocked, context.DeadlineExceeded}, outcome: amqpx.OutcomeOf(err)}.check(t, err)
	_, err = client.Call(rig.Within(t, timeout), "b", nil)
	want{
		code: amqpx.CodeDeadlineExceeded, outcome: amqpx.DidNotRun,
		is: []error{amqpx.ErrBlocked, context.DeadlineExceeded},
	}.check(t, err)
	if st := client.Status(); st.State != amqpx.StateBlocked || !strings.Contains(st.Reason, "memory") || st.Ready() {
		t.Errorf("status %+v, want blocked because of the memory", st)
	}

	waiting := begin(rig.Patience(t), client, "b", nil)
	broker.Ctl("set_vm_memory_high_watermark", "0.9")
	if got := rig.Recv(t, waiting, "the call that waited"); got.err != nil || string(got.response) != "b" {
		t.Errorf("got %q, %v, want the response once the alarm is over", got.response, got.err)
	}
	rig.Eventually(t, "both are ready", func() bool { return client.Status().Ready() && server.Status().Ready() })
	if got := client.Stats().Reconnects + server.Stats().Reconnects; got != 0 {
		t.Errorf("%d reconnects, want the connections unharmed", got)
	}
}

// brokerGoes stops the broker in the middle of 1,000 calls. All idempotent calls must succeed;
// each other call must end with a response or with an error that leaves the outcome open.
func brokerGoes(t *testing.T, broker *rig.Broker, opt amqpx.CallOption, goes func()) {
	t.Helper()
	r := rig.On(t, broker.URL)
	server := r.Serve(rig.Methods{"echo": echo})
	opts := []amqpx.CallOption{amqpx.WaitForServer()}
	if opt != nil {
		opts = append(opts, opt)
	}
	client := r.Ready(amqpx.WithCallOptions(opts...))
	const calls, callers = 1000, 4
	ctx := rig.Within(t, 6*time.Minute)
	next := make(chan int)
	var all sync.WaitGroup
	for range callers {
		all.Go(func() {
			for i := range next {
				one, cancel := context.WithTimeout(ctx, callTime(opt))
				got, err := client.Call(one, "echo", []byte(strconv.Itoa(i)))
				cancel()
				if err == nil && string(got) != strconv.Itoa(i) || err != nil && (opt != nil || amqpx.OutcomeOf(err) == amqpx.Ran) {
					t.Errorf("call %d: got %q, %v", i, got, err)
				}
			}
		})
	}
	for i := range calls {
		if i == calls/2 {
			// Callers with a call in progress experience the end of the broker.
			all.Go(goes)
		}
		next <- i
		if i >= calls/2 && i < calls/2+callers {
			rig.Eventually(t, "the connection is lost or the call went through", func() bool {
				return client.Status().Generation > 1 || !client.Status().Ready() || client.Stats().OK >= uint64(i)
			})
		}
	}
	close(next)
	all.Wait()
	st := client.Stats()
	if st.OK+st.Failed != calls || st.InFlight != 0 {
		t.Errorf("client counted %+v, want %d settled", st, calls)
	}
	t.Logf("client %+v, server %+v", st, server.Stats())
}

// callTime returns the time of a call: short if the call is not sent again, because it may
// wait in vain.
func callTime(opt amqpx.CallOption) time.Duration {
	if opt == nil {
		return 2 * time.Second
	}
	return 3 * time.Minute
}

// brokerFreezes stops the broker's processes without closing a connection, so only the
// heartbeat detects the failure.
func brokerFreezes(t *testing.T, broker *rig.Broker) {
	t.Helper()
	r := rig.On(t, broker.URL)
	// The heartbeat must not detect the failure before the call was sent.
	heartbeat := amqpx.WithHeartbeat(5 * time.Second)
	r.Serve(rig.Methods{"b": letter}, heartbeat)
	client := r.Ready(heartbeat, amqpx.WithCallOptions(amqpx.Idempotent(), amqpx.WaitForServer()))
	rig.Call(t, client, "b", nil)
	broker.Do("pause")
	var err error
	// The broker's processes may still answer a last call while they are being stopped.
	rig.Eventually(t, "the broker is frozen", func() bool {
		err = sent(func() error {
			_, err := client.Call(rig.Within(t, 300*time.Millisecond), "b", nil)
			return err
		})
		return err != nil
	})
	want{code: amqpx.CodeDeadlineExceeded, outcome: amqpx.MayHaveRun, is: []error{context.DeadlineExceeded}}.check(t, err)
	rig.Eventually(t, "the client noticed", func() bool { return !client.Status().Ready() })
	broker.Do("resume")
	if got := rig.Call(t, client, "b", nil); string(got) != "b" {
		t.Errorf("got %q, want %q", got, "b")
	}
}
