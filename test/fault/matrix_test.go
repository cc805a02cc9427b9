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

	"rabbitmq-rpc/pkg/amqpx"
	"rabbitmq-rpc/test/fault/internal/check"
	"rabbitmq-rpc/test/fault/internal/report"
)

// scenarios returns the whole matrix.
func scenarios() []scenario {
	return slices.Concat(tcpScenarios(), processScenarios(), brokerScenarios(), floodScenarios(), laneScenarios(), containerScenarios())
}

// TestMatrix runs every scenario, and proves how soon calls succeed again after the broker's
// return: `make chaos`.
func TestMatrix(t *testing.T) {
	matrix := slices.DeleteFunc(scenarios(), func(sc scenario) bool { return sc.lane && set.batch == string(amqpx.BatchOff) })
	run := table(t, "chaos", "make chaos", set.batch, matrix)
	const median, p99, enough = time.Second, 3 * time.Second, 20
	all := run.Recoveries()
	if len(all) < enough {
		return // too few for a quantile: single scenarios were selected
	}
	if got := report.Quantile(all, 0.5); got > median {
		t.Errorf("from the broker's return to the first response: median %v, want at most %v", got, median)
	}
	if got := report.Quantile(all, 0.99); got > p99 {
		t.Errorf("from the broker's return to the first response: p99 %v, want at most %v", got, p99)
	}
}

// TestShort injects a fault of each common kind into a pair, in an order drawn from the seed,
// with batches and without: `make fault`, a part of `make test`.
func TestShort(t *testing.T) {
	modes := []amqpx.BatchMode{amqpx.BatchAuto, amqpx.BatchOff}
	batch := "both"
	flag.Visit(func(f *flag.Flag) {
		if f.Name == batchFlag {
			batch, modes = set.batch, []amqpx.BatchMode{amqpx.BatchMode(set.batch)}
		}
	})
	var all []scenario
	for _, mode := range modes {
		all = append(all, short(t, mode))
	}
	table(t, "short", "make fault", batch, all)
}

// short returns a scenario made of all short scenarios.
func short(t *testing.T, mode amqpx.BatchMode) scenario {
	t.Helper()
	all := slices.DeleteFunc(scenarios(), func(sc scenario) bool {
		return !sc.short || sc.lane && mode == amqpx.BatchOff
	})
	return scenario{
		name: "short-" + string(mode), about: fmt.Sprintf("%d kinds of faults, one after the other, batch %s", len(all), mode),
		times: len(all), gap: 300 * time.Millisecond, notice: noticeWithin, batch: mode,
		rules: check.Rules{IdempotentOK: true, Deliveries: deliveries},
		fault: func(s *stage) {
			if s.injected == 0 {
				s.random.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
			}
			begun := time.Now()
			all[s.injected].fault(s)
			t.Logf("%s took %v", all[s.injected].name, time.Since(begun).Round(time.Millisecond))
		},
	}
}

// table runs scenarios in turn and writes their table.
func table(t *testing.T, name, command, batch string, all []scenario) report.Run {
	t.Helper()
	run := report.Run{
		Command: command + repeats(batch), Seed: set.seed, Broker: major(), Batch: batch, Begun: time.Now(),
	}
	for _, sc := range all {
		t.Run(sc.name, func(t *testing.T) {
			var row report.Row
			defer func() { // also after a fatal failure
				run.Rows = append(run.Rows, row)
				write(t, run, name)
			}()
			play(t, sc, &row)
			t.Logf("%d calls, %d in batches, %d ok, errors %v, %v", row.Calls, row.Batched, row.OK, row.Errors, row.Verdict)
			t.Logf("streams: %+v", row.Streams)
			t.Logf("keys: %+v", row.Keys)
		})
	}
	t.Logf("seed %d repeats this\n%s", set.seed, run.Markdown())
	return run
}

// repeats returns the arguments of a Makefile target for a repetition of the run.
func repeats(batch string) string {
	text := fmt.Sprintf(" BROKER=%s SEED=%d", major(), set.seed)
	var flags []string
	if batch != "both" {
		flags = append(flags, "-"+batchFlag+"="+batch)
	}
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

// write writes the table to the folder for tables after every scenario, so an interrupted run
// has a table, too.
func write(t *testing.T, run report.Run, name string) {
	t.Helper()
	if set.out == "" {
		return
	}
	if err := run.Write(set.out, name+"-"+major()); err != nil {
		t.Error(err)
	}
}

// major returns the version of the broker.
func major() string { return os.Getenv("AMQPX_TEST_BROKER_MAJOR") }
