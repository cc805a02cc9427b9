//go:build hostile

package hostile

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"rabbitmq-rpc/pkg/amqpx"
	"rabbitmq-rpc/test/internal/rig"
)

const (
	// memory is a server's memory limit, and collected the soft limit of its Go runtime, both
	// as in docker-compose.yml.
	memory    = 256 << 20
	collected = "GOMEMLIMIT=200MiB"
	// interval is the time between two calls of the ordinary client.
	interval = 10 * time.Millisecond
	// deadline of the ordinary calls, as in rpc-client.
	deadline = 30 * time.Second
	// patience bounds the wait for the broker's confirms.
	patience = time.Minute
	// share of the ordinary calls that must succeed; in the last third all must succeed.
	share = 0.99
)

// attack sends one input.
type attack struct {
	t       *testing.T
	url     string
	queue   string
	conn    *amqp.Connection
	ch      *amqp.Channel
	times   int
	refused int // by the broker
}

// publish sends messages to an exchange and waits for the broker's confirms. Messages refused
// by the broker are no attack on the server and are only counted.
func (a *attack) publish(exchange, key string, messages ...amqp.Publishing) error {
	if a.ch == nil || a.ch.IsClosed() {
		if err := a.open(); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithTimeout(a.t.Context(), patience)
	defer cancel()
	confirms := make([]*amqp.DeferredConfirmation, len(messages))
	var err error
	for i, msg := range messages {
		if confirms[i], err = a.ch.PublishWithDeferredConfirmWithContext(ctx, exchange, key, false, false, msg); err != nil {
			break
		}
	}
	for _, confirm := range confirms {
		if err == nil {
			_, err = confirm.WaitContext(ctx)
		}
	}
	if errors.Is(err, amqp.ErrClosed) || a.ch.IsClosed() {
		a.refused++
		return nil
	}
	return err
}

// open opens a channel, and a connection if needed.
func (a *attack) open() error {
	if a.conn == nil || a.conn.IsClosed() {
		conn, err := amqp.Dial(a.url)
		if err != nil {
			return err
		}
		a.conn = conn
	}
	ch, err := a.conn.Channel()
	if err != nil {
		return err
	}
	a.ch = ch
	return ch.Confirm(false)
}

// outcome of one ordinary call.
type outcome struct {
	at   time.Duration // since the start
	took time.Duration
	err  error
}

// row is the result of one input.
type row struct {
	input

	played         bool
	times, refused int
	outcomes       []outcome
	peak           int
	limit          string
	problems       []string
}

// TestHostileInputs sends every input to a separate server, some inputs in parallel, while an
// ordinary client calls each server: `make hostile`.
func TestHostileInputs(t *testing.T) {
	set.began = true
	all := inputs()
	rows := make([]*row, len(all))
	t.Run("inputs", func(t *testing.T) {
		for i, in := range all {
			rows[i] = &row{input: in}
			t.Run(in.name, func(t *testing.T) {
				t.Parallel()
				play(t, rows[i])
				for _, problem := range rows[i].problems {
					t.Error(problem)
				}
			})
		}
	})
	rows = slices.DeleteFunc(rows, func(r *row) bool { return !r.played })
	if len(rows) == 0 {
		t.Fatalf("-run %s matches no input", flag.Lookup("test.run").Value)
	}
	text := table(rows)
	t.Log("\n" + text)
	if set.out == "" {
		return
	}
	const private, own = 0o700, 0o600
	if err := os.MkdirAll(set.out, private); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(set.out, "hostile-"+os.Getenv("AMQPX_TEST_BROKER_MAJOR")+".md"), []byte(text), own); err != nil {
		t.Fatal(err)
	}
}

// play sends one input for the configured time, and then checks the server and the client.
func play(t *testing.T, r *row) {
	t.Helper()
	r.played = true
	tenant := rig.Manage(t).Tenant()
	tenant.Grant(".*")
	limit := rig.NewMemoryLimit(t, memory)
	r.limit = limit.Kind
	const queue = "rpc"
	server := start(t, r, limit, tenant, queue)
	client, err := amqpx.NewClient(tenant.URL(), amqpx.WithQueue(amqpx.Queue{Name: queue, Type: amqpx.QueueClassic}),
		amqpx.WithCallOptions(amqpx.WaitForServer(), amqpx.Idempotent()))
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		closing, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), deadline)
		defer cancel()
		if err := client.Close(closing); err != nil {
			t.Errorf("close the client: %v", err)
		}
	}()
	if _, err := client.Call(rig.Patience(t), "b", []byte("request")); err != nil {
		t.Fatalf("before anything was sent: %v", err)
	}

	begun := time.Now()
	ctx, cancel := context.WithTimeout(t.Context(), set.lasts)
	defer cancel()
	a := &attack{t: t, url: tenant.URL(), queue: queue}
	var attacker sync.WaitGroup
	attacker.Go(func() { a.run(ctx, r) }) // ends with ctx
	r.outcomes = ordinary(ctx, client, begun)
	attacker.Wait()
	r.times, r.refused = a.times, a.refused
	if a.conn != nil {
		_ = a.conn.Close()
	}

	if _, err := client.Call(rig.Patience(t), "b", []byte("request")); err != nil {
		r.problems = append(r.problems, fmt.Sprintf("after all of it: %v", err))
	}
	r.peak = limit.Peak()
	if !server.Running() {
		r.problems = append(r.problems, fmt.Sprintf("the server ended: %v", server.Wait()))
		return
	}
	server.Terminate()
	if err := server.Wait(); err != nil {
		r.problems = append(r.problems, fmt.Sprintf("the server ended with %v", err))
	}
	r.judge()
}

// start runs the server of an input under a memory limit.
func start(t *testing.T, r *row, limit *rig.MemoryLimit, tenant *rig.Tenant, queue string) *rig.Program {
	t.Helper()
	at := tenant.URL()
	if r.url != nil {
		at = r.url(at)
	}
	env := []string{"RPC_QUEUE=" + queue, "HTTP_ADDR=127.0.0.1:0", "METRICS=false", collected}
	if r.tls {
		secure, ca := rig.TLS(t)
		host := ""
		rig.Rewrite(t, secure, func(u *url.URL) { host = u.Host })
		at = rig.Rewrite(t, at, func(u *url.URL) { u.Scheme, u.Host = "amqps", host })
		env = append(env, "AMQP_TLS_CA_FILE="+ca)
	}
	program, args := filepath.Join(set.programs, "rpc-server"), []string(nil)
	if r.program != "" {
		program, args = filepath.Join(set.programs, r.program), []string{"-url", at, "-queue", queue}
	}
	command := limit.Command(program, args...)
	return rig.Run(t, append(env, "AMQP_URL="+at), command[0], command[1:]...)
}

// run sends the input until ctx ends.
func (a *attack) run(ctx context.Context, r *row) {
	tick := time.NewTicker(r.every)
	defer tick.Stop()
	for {
		if err := r.send(a); err != nil && ctx.Err() == nil {
			a.t.Errorf("the input cannot be sent: %v", err)
			return
		}
		a.times++
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// ordinary makes calls at a steady rate until ctx ends, and returns their outcomes.
func ordinary(ctx context.Context, client *amqpx.Client, begun time.Time) []outcome {
	var mu sync.Mutex
	var all []outcome
	var calls sync.WaitGroup
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			calls.Wait()
			return all
		case <-tick.C:
		}
		calls.Go(func() { // ends with the call's deadline
			call, cancel := context.WithTimeout(context.WithoutCancel(ctx), deadline)
			defer cancel()
			made := time.Now()
			_, err := client.Call(call, "b", []byte("request"))
			mu.Lock()
			defer mu.Unlock()
			all = append(all, outcome{at: made.Sub(begun), took: time.Since(made), err: err})
		})
	}
}

// counts returns the numbers of calls and of successful calls since a moment.
func (r *row) counts(since time.Duration) (calls, ok int) {
	for _, o := range r.outcomes {
		if o.at < since {
			continue
		}
		calls++
		if o.err == nil {
			ok++
		}
	}
	return calls, ok
}

func (r *row) lastThird() time.Duration { return set.lasts * 2 / 3 }

// judge compares the calls with the requirements.
func (r *row) judge() {
	calls, ok := r.counts(0)
	if calls == 0 || float64(ok) < share*float64(calls) {
		r.problems = append(r.problems, fmt.Sprintf("%d of %d calls were answered, such as not: %s", ok, calls, r.example()))
	}
	if calls, ok := r.counts(r.lastThird()); ok < calls || calls == 0 {
		r.problems = append(r.problems, fmt.Sprintf("%d of %d calls of the last third were answered, such as not: %s", ok, calls, r.example()))
	}
	if r.times == r.refused {
		r.problems = append(r.problems, "the broker took nothing of the input")
	}
}

// example returns the last error.
func (r *row) example() string {
	for _, o := range slices.Backward(r.outcomes) {
		if o.err != nil {
			return o.err.Error()
		}
	}
	return "none"
}

// table formats the results of all inputs.
func table(rows []*row) string {
	var b strings.Builder
	fmt.Fprintf(&b, "RabbitMQ %s, servers under 256 MiB, %v of each input, 100 calls/s beside it\n\n", os.Getenv("AMQPX_TEST_BROKER_MAJOR"), set.lasts)
	b.WriteString("| input | what | sent | calls | ok | of the last third | slowest answer | peak memory | by | verdict |\n|---|---|--:|--:|--:|--:|--:|--:|---|---|\n")
	for _, r := range rows {
		calls, ok := r.counts(0)
		lastCalls, lastOK := r.counts(r.lastThird())
		slowest := time.Duration(0)
		for _, o := range r.outcomes {
			if o.err == nil {
				slowest = max(slowest, o.took)
			}
		}
		verdict := "passed"
		if len(r.problems) > 0 {
			verdict = "FAILED"
		}
		fmt.Fprintf(&b, "| %s | %s | %d | %d | %s | %s | %v | %d MiB | %s | %s |\n", r.name, r.about, r.times, calls,
			percent(ok, calls), percent(lastOK, lastCalls), slowest.Round(time.Millisecond), r.peak>>20, r.limit, verdict)
	}
	return b.String()
}

func percent(part, whole int) string {
	if whole == 0 {
		return "–"
	}
	return fmt.Sprintf("%.2f %%", 100*float64(part)/float64(whole))
}
