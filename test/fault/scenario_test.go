//go:build fault

package fault

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"rabbitmq-rpc/pkg/amqpx"
	"rabbitmq-rpc/test/fault/internal/check"
	"rabbitmq-rpc/test/fault/internal/ledger"
	"rabbitmq-rpc/test/fault/internal/report"
)

// scenario is one row of the matrix.
type scenario struct {
	name string
	// about describes the fault in the table.
	about string
	// lasts is the duration of the injections at scale 1. The fault is injected at least once,
	// or times times if times is set.
	lasts time.Duration
	times int
	// gap is the longest pause between two faults.
	gap time.Duration
	// short scenarios are part of every test run.
	short bool
	load  load
	rules check.Rules
	// before prepares the broker; fault injects the fault once and heals it.
	before, fault func(*stage)
	// batch is the batch mode; "" is the value of the flag -batch.
	batch amqpx.BatchMode
	// lane scenarios test batching and are skipped without it.
	lane bool
	// rolling restarts must keep the clients' gaps short.
	rolling bool
	// place is the placement in a cluster; nil means a single broker.
	place *placement
	// notice is the number of heartbeats within which a muted side must leave ready; 0
	// disables the check.
	notice float64
}

// load describes the load of the pair.
type load struct {
	clients, servers, callers, padding int
	// streams is the number of streams of each client that are open at once.
	streams int
	// shapes is the number of each client's callers of the other shapes: calls to all servers, and
	// one-way, retried and hedged calls.
	shapes int
	// keyed is the number of each client's callers with idempotency keys that all clients share. The
	// servers remember the keys in one store.
	keyed int
	// workers is the number of a server's workers; 0 is the library's default.
	workers                         int
	mix                             string
	rate                            float64
	deadline, impatience, heartbeat time.Duration
	longest                         time.Duration
	kind                            amqpx.QueueType
	replies                         amqpx.QueueType // of the reply queues; "" is classic
	persistent, direct              bool
}

// usual returns the default load of a scenario.
func usual() load {
	return load{
		clients: 2, servers: 2, callers: 32, streams: 4, shapes: 4, keyed: 4, mix: "echo:28,once:4,slow:4,fail:2,panic:1",
		deadline: 30 * time.Second, impatience: 5 * time.Second,
		longest: 50 * time.Millisecond, heartbeat: 2 * time.Second, kind: amqpx.QueueClassic,
	}
}

// with returns the usual load with changes.
func with(change func(*load)) load {
	l := usual()
	change(&l)
	return l
}

// play runs a scenario and fills in its row.
func play(t *testing.T, sc scenario, row *report.Row) {
	t.Helper()
	if sc.load.clients == 0 {
		sc.load = usual()
	}
	if sc.batch == "" {
		sc.batch = amqpx.BatchMode(set.batch)
	}
	if sc.gap == 0 {
		sc.gap = time.Second
	}
	*row = report.Row{Scenario: sc.name, About: sc.about, Batch: string(sc.batch), Verdict: report.Failed}
	s := newStage(&recorder{TB: t, row: row}, sc)
	begun := time.Now()
	s.begin()
	t.Logf("the pair works after %v", time.Since(begun).Round(time.Millisecond))
	s.pause(sc.gap)
	stop := time.Now().Add(time.Duration(float64(sc.lasts) * set.scale))
	for s.injected < max(sc.times, 1) || (sc.times == 0 && time.Now().Before(stop)) {
		s.inject()
		s.served()
		row.Injected = s.injected
		s.pause(sc.gap)
	}
	s.end(row)
	row.Seconds = time.Since(begun).Seconds()
	s.judge(row)
	if len(row.Problems) == 0 {
		row.Verdict = report.Passed
	}
	for _, p := range row.Problems {
		t.Error(p)
	}
}

// recorder adds the reason of a fatal failure to the row of the scenario.
type recorder struct {
	testing.TB

	row *report.Row
}

func (r *recorder) Fatal(args ...any) {
	r.Helper()
	r.row.Problems = append(r.row.Problems, strings.TrimSuffix(fmt.Sprintln(args...), "\n"))
	r.TB.Fatal(args...)
}

func (r *recorder) Fatalf(format string, args ...any) {
	r.Helper()
	r.row.Problems = append(r.row.Problems, fmt.Sprintf(format, args...))
	r.TB.Fatalf(format, args...)
}

// silence bounds the silence of a stream, beside the time in which a silent connection is noticed: an
// alarm takes less, and so do the two pings after which a peer is gone.
const silence = 15 * time.Second

// judge reads the ledgers and lists the problems.
func (s *stage) judge(row *report.Row) {
	s.t.Helper()
	var book check.Book
	var clock check.Clock
	err := ledger.ReadDir(s.dir, func(e ledger.Entry) {
		book.Add(e)
		clock.Add(e)
	})
	if err != nil {
		s.t.Fatal(err)
	}
	s.sc.rules.Bound = set.bound
	// These delete queues, and with them requests that the broker has confirmed.
	s.sc.rules.SentRuns = !slices.Contains([]string{"queue-deleted", "lane-queue-deleted", "vhost"}, s.sc.name)
	s.sc.rules.Lease = lease
	s.sc.rules.Silence = silence + time.Duration(noticeWithin*float64(s.sc.load.heartbeat))
	row.Result = book.Check(s.sc.rules)
	for _, v := range row.Result.Violations {
		row.Problems = append(row.Problems, v.String())
	}
	for _, at := range s.accepted {
		d, ok := clock.RespondedAfter(at)
		if !ok {
			row.Problems = append(row.Problems, "no response after the broker came back")
			continue
		}
		row.Recoveries = append(row.Recoveries, d)
	}
	s.judgeNotices(row, &clock)
	s.judgeLosses(row, &clock)
	s.judgeBatches(row)
	s.judgeKeys(row)
	row.Problems = slices.Concat(row.Problems, row.Leaks, s.judgeMemory())
}

// judgeBatches proves that calls were sent in batches, or were not, according to the batch
// mode.
func (s *stage) judgeBatches(row *report.Row) {
	for _, c := range slices.Concat(s.clients, s.gone) {
		row.Batched += c.inBatches()
	}
	switch {
	case s.sc.batch == amqpx.BatchAuto && row.Batched == 0:
		row.Problems = append(row.Problems, "no call travelled in a batch")
	case s.sc.batch == amqpx.BatchOff && row.Batched > 0:
		row.Problems = append(row.Problems, fmt.Sprintf("%d calls travelled in a batch", row.Batched))
	}
}

// judgeKeys proves that the load had keys whose requests more than one server got.
func (s *stage) judgeKeys(row *report.Row) {
	if s.sc.load.keyed > 0 && row.Keys.Several == 0 {
		row.Problems = append(row.Problems, fmt.Sprintf("no idempotency key had responses of several servers: %+v", row.Keys))
	}
}

// judgeNotices proves that a side with a silent connection left ready in time.
func (s *stage) judgeNotices(row *report.Row, clock *check.Clock) {
	s.t.Helper()
	for _, m := range s.muted {
		for _, name := range m.nodes {
			d, ok := clock.LeftReady(name, m.at)
			if !ok {
				row.Problems = append(row.Problems, name+" did not notice that its connection is mute")
				continue
			}
			row.Notices = append(row.Notices, d)
			if most := time.Duration(s.sc.notice * float64(s.sc.load.heartbeat)); d > most {
				row.Problems = append(row.Problems, name+" noticed its mute connection after "+d.String())
			}
		}
	}
}
