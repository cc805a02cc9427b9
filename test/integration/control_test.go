//go:build integration

package integration

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"rabbitmq-rpc/pkg/amqpx"
	"rabbitmq-rpc/test/internal/rig"
)

// listed queries the servers until n servers respond.
func listed(t *testing.T, client *amqpx.Client, n int) (fleet []amqpx.ServerInfo) {
	t.Helper()
	rig.Eventually(t, fmt.Sprintf("%d servers answer", n), func() bool {
		var err error
		fleet, err = client.Servers(rig.Patience(t))
		return len(fleet) == n && (err == nil || n == 0)
	})
	return fleet
}

func TestFleetOfServers(t *testing.T) {
	t.Parallel()
	r := rig.New(t)
	busy := hold()
	for i := range 2 {
		r.Serve(rig.Methods{"b": letter}, amqpx.WithName(fmt.Sprint("server ", i)), amqpx.WithVersion("7"))
	}
	third := r.Serve(rig.Methods{"b": letter, "run": busy.handle}, amqpx.WithName("server 2"), amqpx.WithVersion("8"))
	proxy := r.Proxy()
	r.ServeAt(proxy.URL(), rig.Methods{"b": letter}, amqpx.WithName("server 3"))
	client := r.Ready()
	if _, err := client.Ping(rig.Patience(t)); err != nil {
		t.Errorf("ping: %v", err)
	}
	if _, err := third.Ping(rig.Patience(t)); err != nil {
		t.Errorf("ping of a server to itself: %v", err)
	}
	for range 100 {
		rig.Call(t, client, "b", nil)
	}
	fleet := listed(t, client, 4)
	var ran uint64
	for i, in := range fleet {
		if want := fmt.Sprint("server ", i); in.Name != want || in.Queue != r.Queue.Name || in.State != "ready" || in.RoundTripMS <= 0 {
			t.Errorf("instance %d: %+v", i, in)
		}
		ran += in.Methods[0].OK
		if in.Stats.OK != in.Methods[0].OK || in.Methods[0].OK > 0 && in.Methods[0].LatencyMS.Max < 0 {
			t.Errorf("instance %d: %+v, %+v", i, in.Stats, in.Methods)
		}
	}
	if ran != 100 {
		t.Errorf("they ran %d calls together, want 100", ran)
	}
	// A draining server is still listed, and a server that lost its connection comes back.
	call := begin(rig.Patience(t), client, "run", []byte("x"))
	for busyAt := ""; busyAt != "server 2"; { // the other servers do not know the method
		select {
		case <-busy.entered:
			busyAt = "server 2"
		case got := <-call:
			if amqpx.CodeOf(got.err) != amqpx.CodeUnimplemented {
				t.Fatalf("got %v", got.err)
			}
			call = begin(rig.Patience(t), client, "run", []byte("x"))
		}
	}
	third.Stop()
	proxy.Cut()
	rig.Eventually(t, "one server drains", func() bool {
		fleet = listed(t, client, 4)
		return slices.ContainsFunc(fleet, func(in amqpx.ServerInfo) bool { return in.Name == "server 2" && in.State == "draining" })
	})
	close(busy.release)
	rig.Recv(t, call, "the response")
	listed(t, client, 3)
}

func TestFleetWithoutServers(t *testing.T) {
	t.Parallel()
	r := rig.New(t)
	client := r.Ready()
	for range 2 { // first without the exchange, then with an exchange that has no queue
		if _, err := client.Servers(rig.Patience(t)); !errors.Is(err, amqpx.ErrUnroutable) {
			t.Errorf("got %v, want %v", err, amqpx.ErrUnroutable)
		}
		if err := r.Serve(rig.Methods{"b": letter}).Drain(); err != nil {
			t.Error(err)
		}
	}
	if st := client.Stats(); st.Reconnects != 0 {
		t.Errorf("it cost %d reconnects", st.Reconnects)
	}
}

// canceled is a handler that reports the error of its context.
type canceled struct{ begun, ended chan string }

func (c *canceled) handle(ctx context.Context, req *amqpx.Request) ([]byte, error) {
	c.begun <- string(req.Body)
	<-ctx.Done()
	c.ended <- string(req.Body) + " " + ctx.Err().Error()
	return nil, ctx.Err()
}

func TestCancelReachesTheServerThatRunsTheCall(t *testing.T) {
	t.Parallel()
	for _, mode := range []amqpx.BatchMode{amqpx.BatchOff, amqpx.BatchAuto} {
		t.Run(string(mode), func(t *testing.T) {
			t.Parallel()
			const callers = 60
			r := rig.New(t)
			c := &canceled{begun: make(chan string, callers), ended: make(chan string, callers)}
			var servers []*rig.Server
			for range 3 {
				servers = append(servers, r.Serve(rig.Methods{"wait": c.handle, "echo": echo}, amqpx.WithBatch(mode)))
			}
			client := r.Ready(amqpx.WithBatch(mode))
			if mode == amqpx.BatchAuto {
				openLane(t, client)
			}
			stays, cancelStays := context.WithCancel(rig.Patience(t))
			ctx, cancel := context.WithCancel(rig.Patience(t))
			var calls []<-chan outcome
			for i := range callers {
				its, body := ctx, "goes"
				if i%10 == 0 {
					its, body = stays, "stays"
				}
				calls = append(calls, begin(its, client, "wait", []byte(body)))
			}
			for range callers {
				rig.Recv(t, c.begun, "a handler to begin")
			}
			batched := client.Stats().Batched
			if batched > 0 != (mode == amqpx.BatchAuto) {
				t.Errorf("%d calls travelled together", batched)
			}
			cancel()
			for range callers * 9 / 10 {
				if got := rig.Recv(t, c.ended, "a handler's context to end"); got != "goes context canceled" {
					t.Errorf("a handler ended with %q", got)
				}
			}
			if len(c.ended) > 0 {
				t.Error("a call that nobody gave up was cancelled")
			}
			cancelStays()
			for _, call := range calls {
				want{code: amqpx.CodeCanceled, outcome: amqpx.MayHaveRun, is: []error{context.Canceled}}.
					check(t, rig.Recv(t, call, "a call to settle").err)
			}
			rig.Eventually(t, "every request is settled", func() bool {
				var open, canceled uint64
				for _, s := range servers {
					open += s.Stats().InFlight
					canceled += s.Stats().Canceled
				}
				return open == 0 && canceled == callers
			})
		})
	}
}

// TestFloodOfTheControlPlane: calls succeed during a flood of arbitrary control messages.
func TestFloodOfTheControlPlane(t *testing.T) {
	t.Parallel()
	r := rig.New(t)
	core, logs := observer.New(zap.WarnLevel)
	server := r.Serve(rig.Methods{"b": letter}, amqpx.WithLogger(zap.New(core)))
	client := r.Ready()
	inbox, ch := r.Inbox(), r.Raw()
	begun := time.Now()
	strange := []amqp.Publishing{
		{AppId: "stats", ReplyTo: inbox.Name, CorrelationId: "1"},
		{AppId: "cancel", Body: bytes.Repeat([]byte{0xff}, 1000)},
		{AppId: "cancel", Body: []byte("\x0a\x05\x0a\x01x\x12\x00")},
		{AppId: "reboot", ReplyTo: inbox.Name},
		{AppId: "stats", ReplyTo: "amq.rabbitmq.reply-to.made.up"},
		{Body: make([]byte, 100_000)},
	}
	for i := range 6000 {
		if err := ch.Publish(r.Queue.Name+".control", "ignored", false, false, strange[i%len(strange)]); err != nil {
			t.Fatal(err)
		}
	}
	for range 100 {
		rig.Call(t, client, "b", nil)
	}
	if d := inbox.Next(); d.CorrelationId != "1" || d.ContentType != "application/json" {
		t.Errorf("answer %+v", d)
	}
	listed(t, client, 1)
	if st := server.Stats(); st.Reconnects != 0 || st.OK != 100 {
		t.Errorf("server %+v", st)
	}
	fewLines(t, logs, "dropped a control message that cannot be read", begun)
}

// fewLines checks that a line is in the log, and no more often than the library's limit of one line
// in 30 s allows since a moment.
func fewLines(t *testing.T, logs *observer.ObservedLogs, message string, since time.Time) {
	t.Helper()
	const interval = 30 * time.Second
	if n, most := logs.FilterMessage(message).Len(), 1+int(time.Since(since)/interval); n < 1 || n > most {
		t.Errorf("%d lines %q, want 1 to %d", n, message, most)
	}
}

func TestServerThatMayNotHaveAControlPlane(t *testing.T) {
	t.Parallel()
	tenant := rig.Manage(t).Tenant()
	r := rig.On(t, tenant.URL())
	tenant.Grant(`.*(reply\..*|` + r.Queue.Name[len("test."):] + `(\.batch|\.retry|\.dead)?)$`)
	core, logs := observer.New(zap.WarnLevel)
	server := r.Serve(rig.Methods{"b": letter}, amqpx.WithLogger(zap.New(core)))
	client := r.Ready()
	if got := rig.Call(t, client, "b", nil); string(got) != "b" {
		t.Errorf("got %q", got)
	}
	if _, err := server.Ping(rig.Patience(t)); amqpx.CodeOf(err) != amqpx.CodeUnimplemented {
		t.Errorf("ping: %v", err)
	}
	if n := logs.FilterMessage("no control plane: the broker refused it").Len(); n != 1 {
		t.Errorf("%d lines about it, want 1: %v", n, logs.All())
	}
}

// BenchmarkCancel measures the time from the end of a caller's context to the end of the
// handler's context, for single calls and for calls in a batch.
func BenchmarkCancel(b *testing.B) {
	for _, callers := range []int{1, 64} {
		b.Run(fmt.Sprint(callers, " callers"), func(b *testing.B) {
			r := rig.New(b)
			begun, ended := make(chan struct{}, callers), make(chan time.Time, callers)
			r.Serve(rig.Methods{"echo": echo, "wait": func(ctx context.Context, _ *amqpx.Request) ([]byte, error) {
				begun <- struct{}{}
				<-ctx.Done()
				ended <- time.Now()
				return nil, ctx.Err()
			}})
			client := r.Ready()
			if callers > 1 {
				openLane(b, client)
			}
			before := client.Stats().Batched
			var took []time.Duration
			for b.Loop() {
				ctx, cancel := context.WithCancel(b.Context())
				var calls []<-chan outcome
				for range callers {
					calls = append(calls, begin(ctx, client, "wait", nil))
				}
				for range callers {
					rig.Recv(b, begun, "the handler to begin")
				}
				given := time.Now()
				cancel()
				for _, call := range calls {
					took = append(took, rig.Recv(b, ended, "the handler's context to end").Sub(given))
					<-call
				}
			}
			slices.Sort(took)
			b.ReportMetric(float64(client.Stats().Batched-before)/float64(len(took)), "batched")
			b.ReportMetric(float64(took[len(took)/2].Microseconds()), "µs-median")
			b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "µs-p99")
		})
	}
}
