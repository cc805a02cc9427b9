package transport_test

import (
	"context"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"rabbitmq-rpc/pkg/amqpx/internal/brokertest"
	"rabbitmq-rpc/pkg/amqpx/internal/transport"
)

// testURL contains a password, and tests of error texts check that the password is missing.
const testURL = "amqp://app:secret@broker.test:5672/"

// The settings of supervisors in tests.
const (
	heartbeat   = 10 * time.Second
	dialTimeout = 5 * time.Second
	backoffMin  = 100 * time.Millisecond
)

// watched is a supervisor on a broker in memory, with its log, its set-up and what it reported.
type watched struct {
	*transport.Supervisor
	*reports

	broker  *brokertest.Broker
	cfg     transport.Config
	logs    *observer.ObservedLogs
	setups  int
	onSetup func(*transport.Session) error
	dialed  []time.Duration // since the start
	stop    context.CancelFunc
	ended   chan struct{}
}

// newWatched returns a supervisor for brokers, separated by commas; run starts the supervisor.
func newWatched(t *testing.T, urls string) *watched {
	t.Helper()
	var targets []transport.Target
	for url := range strings.SplitSeq(urls, ",") {
		targets = append(targets, targetOf(t, url))
	}
	core, logs := observer.New(zap.DebugLevel)
	w := &watched{broker: brokertest.New(), logs: logs, ended: make(chan struct{}), reports: newReports()}
	w.cfg = transport.Config{
		Name: "amqpx", Role: "test", Shared: true, Dialer: w.broker, Heartbeat: heartbeat, DialTimeout: dialTimeout,
		BackoffMin: backoffMin, BackoffMax: 10 * time.Second, Logger: zap.New(core), Observer: w.reports,
		Targets: func() []transport.Target { return targets },
		Setup: func(_ context.Context, s *transport.Session) error {
			w.setups++
			if w.onSetup != nil {
				return w.onSetup(s)
			}
			return nil
		},
	}
	return w
}

// run starts the supervisor, which runs until the test ends or calls stop.
func (w *watched) run(t *testing.T) {
	t.Helper()
	w.Supervisor = transport.NewSupervisor(w.cfg)
	begun, inner := time.Now(), w.broker.OnDial
	w.broker.OnDial = func(ctx context.Context, url, name string) error {
		w.dialed = append(w.dialed, time.Since(begun))
		if inner != nil {
			return inner(ctx, url, name)
		}
		return nil
	}
	ctx, stop := context.WithCancel(t.Context())
	w.stop = stop
	go func() {
		defer close(w.ended)
		w.Supervisor.Run(ctx)
	}()
	t.Cleanup(func() {
		stop()
		<-w.ended
	})
}

// logged returns the messages of the log at a level.
func (w *watched) logged(level string) []string {
	var lines []string
	for _, e := range w.logs.All() {
		if e.Level.String() == level {
			lines = append(lines, e.Message)
		}
	}
	return lines
}

// reports is an Observer that keeps the newest report of each kind.
type reports struct {
	mu         sync.Mutex
	changed    chan struct{} // closed at the next report
	ready      bool
	closed     bool
	generation uint64
	err        error
	kind       transport.FaultKind

	blockings chan amqp.Blocking // every report of OnBlocked
}

func newReports() *reports {
	return &reports{changed: make(chan struct{}), blockings: make(chan amqp.Blocking, 16)}
}

func (r *reports) update(change func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	change()
	close(r.changed)
	r.changed = make(chan struct{})
}

func (r *reports) OnConnecting(string) { r.update(func() { r.ready = false }) }

func (r *reports) OnCertificates(time.Time, time.Time) {}
func (r *reports) OnNode(string)                       {}

func (r *reports) OnReady(generation uint64, _ func() bool) {
	r.update(func() { r.ready, r.generation = true, generation })
}

func (r *reports) OnBlocked(b amqp.Blocking) { r.blockings <- b }

func (r *reports) OnFault(err error, kind transport.FaultKind) {
	r.update(func() { r.ready, r.err, r.kind = false, err, kind })
}

func (r *reports) OnClosed() { r.update(func() { r.ready, r.closed = false, true }) }

// await waits until the supervisor is ready, or is not ready, for an hour at most.
func (r *reports) await(t *testing.T, ready bool) {
	t.Helper()
	limit := time.NewTimer(time.Hour)
	defer limit.Stop()
	for {
		r.mu.Lock()
		reached, changed, err := r.ready == ready, r.changed, r.err
		r.mu.Unlock()
		if reached {
			break
		}
		select {
		case <-changed:
		case <-limit.C:
			t.Fatalf("ready is not %v: %v", ready, err)
		}
	}
	if ready {
		settle()
	}
}

// targetOf returns the broker of a valid URL.
func targetOf(t *testing.T, url string) transport.Target {
	t.Helper()
	uri, err := amqp.ParseURI(url)
	if err != nil {
		t.Fatal(err)
	}
	return transport.Target{URL: url, Address: uri.Host + ":5672", User: uri.Username, Vhost: uri.Vhost}
}

// refusing is an OnDial hook that fails n times.
func refusing(n int, err error) func(context.Context, string, string) error {
	return func(context.Context, string, string) error {
		if n--; n >= 0 {
			return err
		}
		return nil
	}
}

// settle waits until every other goroutine of the bubble is blocked.
func settle() { synctest.Wait() }

// pass lets the bubble's virtual time advance by d.
func pass(d time.Duration) {
	<-time.NewTimer(d).C
	synctest.Wait()
}

func wantSame[T comparable](t *testing.T, what string, got, want T) {
	t.Helper()
	if got != want {
		t.Errorf("%s: %v, want %v", what, got, want)
	}
}
