//go:build fault

package fault

import (
	"fmt"
	"os"
	"slices"
	"testing"
	"time"

	"rabbitmq-rpc/test/fault/internal/report"
)

// scenarios is the whole matrix.
func scenarios() []scenario {
	return slices.Concat(tcpScenarios(), processScenarios(), brokerScenarios(), floodScenarios())
}

// TestMatrix runs every scenario: `make chaos`.
func TestMatrix(t *testing.T) {
	table(t, "chaos", fmt.Sprintf("make chaos BROKER=%s SEED=%d", major(), set.seed), scenarios())
}

// TestShort runs the scenarios that are part of `make test`.
func TestShort(t *testing.T) {
	short := slices.DeleteFunc(scenarios(), func(sc scenario) bool { return !sc.short })
	for i := range short {
		short[i].times, short[i].gap = 1, 500*time.Millisecond
	}
	table(t, "short", fmt.Sprintf("make fault BROKER=%s SEED=%d", major(), set.seed), short)
}

// table plays scenarios one after the other and writes the table of all that ran.
func table(t *testing.T, name, command string, all []scenario) {
	t.Helper()
	run := report.Run{Command: command, Seed: set.seed, Broker: major(), Begun: time.Now()}
	for _, sc := range all {
		t.Run(sc.name, func(t *testing.T) {
			var row report.Row
			defer func() { run.Rows = append(run.Rows, row) }() // also of one that gives up
			play(t, sc, &row)
			t.Logf("%d calls, %d ok, errors %v, %v", row.Calls, row.OK, row.Errors, row.Verdict)
		})
	}
	publish(t, run, name)
}

// publish shows a table and writes it into the folder for tables.
func publish(t *testing.T, run report.Run, name string) {
	t.Helper()
	t.Logf("seed %d repeats this\n%s", set.seed, run.Markdown())
	if set.out == "" {
		return
	}
	if err := run.Write(set.out, name+"-"+major()); err != nil {
		t.Error(err)
	}
}

// major is the version of the broker.
func major() string { return os.Getenv("AMQPX_TEST_BROKER_MAJOR") }
