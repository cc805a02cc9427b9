//go:build fault

package fault

import (
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"rabbitmq-rpc/test/fault/internal/check"
	"rabbitmq-rpc/test/fault/internal/report"
)

// scenarios is the whole matrix.
func scenarios() []scenario {
	return slices.Concat(tcpScenarios(), processScenarios(), brokerScenarios(), floodScenarios(), containerScenarios())
}

// TestMatrix runs every scenario, and proves how soon calls are answered again after
// the broker's return: `make chaos`.
func TestMatrix(t *testing.T) {
	run := table(t, "chaos", "make chaos", scenarios())
	const median, p99, enough = time.Second, 3 * time.Second, 20
	all := run.Recoveries()
	if len(all) < enough {
		return // too few to tell a rank: single scenarios were asked for
	}
	if got := report.Quantile(all, 0.5); got > median {
		t.Errorf("from the broker's return to the first answer: median %v, want at most %v", got, median)
	}
	if got := report.Quantile(all, 0.99); got > p99 {
		t.Errorf("from the broker's return to the first answer: p99 %v, want at most %v", got, p99)
	}
}

// TestShort injects one fault of each common kind into one pair, in an order drawn
// from the seed: `make fault`, a part of `make test`.
func TestShort(t *testing.T) {
	short := slices.DeleteFunc(scenarios(), func(sc scenario) bool { return !sc.short })
	table(t, "short", "make fault", []scenario{{
		name: "short", about: fmt.Sprintf("%d kinds of faults, one after the other", len(short)),
		times: len(short), gap: 300 * time.Millisecond, notice: noticeWithin,
		rules: check.Rules{IdempotentOK: true, Deliveries: deliveries},
		fault: func(s *stage) {
			if s.injected == 0 {
				s.random.Shuffle(len(short), func(i, j int) { short[i], short[j] = short[j], short[i] })
			}
			begun := time.Now()
			short[s.injected].fault(s)
			t.Logf("%s took %v", short[s.injected].name, time.Since(begun).Round(time.Millisecond))
		},
	}})
}

// table plays scenarios one after the other and writes the table of all that ran.
func table(t *testing.T, name, command string, all []scenario) report.Run {
	t.Helper()
	run := report.Run{
		Command: command + repeats(), Seed: set.seed, Broker: major(), Begun: time.Now(),
	}
	for _, sc := range all {
		t.Run(sc.name, func(t *testing.T) {
			var row report.Row
			defer func() { // also of one that gives up
				run.Rows = append(run.Rows, row)
				write(t, run, name)
			}()
			play(t, sc, &row)
			t.Logf("%d calls, %d ok, errors %v, %v", row.Calls, row.OK, row.Errors, row.Verdict)
		})
	}
	t.Logf("seed %d repeats this\n%s", set.seed, run.Markdown())
	return run
}

// repeats is what a target of the Makefile needs to do a run again.
func repeats() string {
	text := fmt.Sprintf(" BROKER=%s SEED=%d", major(), set.seed)
	var flags []string
	flag.Visit(func(f *flag.Flag) {
		if f.Name == "scale" || f.Name == "bound" || f.Name == "nodes-race" {
			flags = append(flags, "-"+f.Name+"="+f.Value.String())
		}
	})
	if len(flags) > 0 {
		text += " FAULTFLAGS='" + strings.Join(flags, " ") + "'"
	}
	return text
}

// write writes a table as far as it goes into the folder for tables, so that a run that
// is ended early has one, too.
func write(t *testing.T, run report.Run, name string) {
	t.Helper()
	if set.out == "" {
		return
	}
	if err := run.Write(set.out, name+"-"+major()); err != nil {
		t.Error(err)
	}
}

// major is the version of the broker.
func major() string { return os.Getenv("AMQPX_TEST_BROKER_MAJOR") }
