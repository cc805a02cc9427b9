//go:build integration

package integration

import (
	"strings"
	"testing"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"rabbitmq-rpc/pkg/amqpx"
	"rabbitmq-rpc/test/internal/rig"
)

func TestQueueWithOtherPropertiesIsAdopted(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name    string
		exists  bool // durable
		want    amqpx.Queue
		differs string
	}{
		{"transient, wanted durable", false, amqpx.Queue{Type: amqpx.QueueClassic}, "durable"},
		{"durable, wanted transient", true, amqpx.Queue{Type: amqpx.QueueClassic, Transient: true}, "durable"},
		{"classic, wanted quorum", true, amqpx.Queue{Type: amqpx.QueueQuorum}, "x-queue-type"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			r := rig.New(t)
			r.Declare(c.exists, nil)
			c.want.Name = r.Queue.Name
			r.Queue = c.want
			core, logs := observer.New(zap.WarnLevel)
			proxy := r.Proxy()
			server := r.StartAt(proxy.URL(), rig.Methods{"b": letter}, amqpx.WithLogger(zap.New(core)))
			client := r.Ready(amqpx.WithCallOptions(amqpx.WaitForServer()))
			if got := rig.Call(t, client, "b", nil); string(got) != "b" {
				t.Errorf("got %q, want %q", got, "b")
			}
			proxy.Cut() // the next connection adopts again, without a log line
			rig.Eventually(t, "the server is back", func() bool { return server.Status().Generation > 1 })
			rig.Call(t, client, "b", nil)

			warned := logs.FilterMessage("queue exists with other properties and is used as it is")
			if warned.Len() != 1 {
				t.Fatalf("warned %d times, want once: %v", warned.Len(), logs.All())
			}
			fields := warned.All()[0].ContextMap()
			if fields["queue"] != r.Queue.Name || fields["wanted_durable"] != !c.want.Transient ||
				fields["wanted_type"] != string(c.want.Type) {
				t.Errorf("the warning does not name what was wanted: %v", fields)
			}
			if text, _ := fields["difference"].(string); !strings.Contains(text, c.differs) || !strings.Contains(text, r.Queue.Name) {
				t.Errorf("the warning does not name what is there: %v", fields)
			}
		})
	}
}

func TestRequestQueueDeletedUnderServersAndClients(t *testing.T) {
	t.Parallel()
	r := rig.New(t)
	one, two := r.Serve(rig.Methods{"b": letter}), r.Serve(rig.Methods{"b": letter})
	client := r.Ready(amqpx.WithCallOptions(amqpx.WaitForServer()))
	rig.Call(t, client, "b", nil)
	if _, err := r.Raw().QueueDelete(r.Queue.Name, false, false, false); err != nil {
		t.Fatal(err)
	}
	for _, s := range []*rig.Server{one, two} {
		rig.Eventually(t, "the server consumes again", func() bool {
			st := s.Status()
			return st.Ready() && st.Generation > 1
		})
	}
	if got := rig.Call(t, client, "b", nil); string(got) != "b" {
		t.Errorf("got %q, want %q", got, "b")
	}
	if got := r.Inspect().Consumers; got != 2 {
		t.Errorf("%d consumers, want both servers", got)
	}
	if got := client.Stats().Reconnects; got != 0 {
		t.Errorf("the client reconnected %d times, but its connection was well", got)
	}
}

// replyQueue returns the name of a client's reply queue.
func replyQueue(t *testing.T, r *rig.Rig) string {
	t.Helper()
	queues := rig.Manage(t).Queues(r.URL, r.Queue.Name+".reply.")
	if len(queues) != 1 {
		t.Fatalf("reply queues %v, want one", queues)
	}
	return queues[0]
}

// TestReplyQueueDeletedUnderTheClient deletes a reply queue with the responses in it. An
// idempotent call is sent again; any other call has an unknown outcome, because a response may
// have been lost.
func TestReplyQueueDeletedUnderTheClient(t *testing.T) {
	t.Parallel()
	lose := func(t *testing.T, opts ...amqpx.CallOption) (*amqpx.Client, *held, <-chan outcome) {
		t.Helper()
		r := rig.New(t)
		slow := hold()
		slow.server = r.Serve(rig.Methods{"slow": slow.handle})
		proxy := r.Proxy()
		client := r.ClientAt(proxy.URL())
		rig.Connected(t, client)
		call := begin(rig.Patience(t), client, "slow", []byte("x"), opts...)
		rig.Recv(t, slow.entered, "the request to arrive")
		rig.Recv(t, proxy.Heard(rig.Ack), "the confirm")
		if _, err := r.Raw().QueueDelete(replyQueue(t, r), false, false, false); err != nil {
			t.Fatal(err)
		}
		return client, slow, call
	}
	t.Run("once", func(t *testing.T) {
		t.Parallel()
		client, slow, call := lose(t)
		want{code: amqpx.CodeUnavailable, outcome: amqpx.MayHaveRun, is: []error{amqpx.ErrOutcomeUnknown}}.
			check(t, rig.Recv(t, call, "the call to settle").err)
		close(slow.release) // the queue is declared again with the same name, so the response arrives
		rig.Eventually(t, "the late response is counted", func() bool { return client.Stats().Late == 1 })
	})
	t.Run("idempotent", func(t *testing.T) {
		t.Parallel()
		var info amqpx.CallInfo
		client, slow, call := lose(t, amqpx.Idempotent(), amqpx.WithCallInfo(&info))
		slow.joined(t)
		close(slow.release)
		if got := rig.Recv(t, call, "the response"); got.err != nil || string(got.response) != "x" {
			t.Errorf("got %q, %v", got.response, got.err)
		}
		if info.Attempts != 2 {
			t.Errorf("%d attempts, want 2", info.Attempts)
		}
		if got := rig.Call(t, client, "slow", nil); len(got) != 0 {
			t.Errorf("the next call got %q", got)
		}
	})
}
