//go:build fault

package fault

import (
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"rabbitmq-rpc/pkg/amqpx"
	"rabbitmq-rpc/test/fault/internal/check"
	"rabbitmq-rpc/test/fault/internal/report"
)

// soakRate bounds the calls of a soak per second and client, and so the size of the ledgers.
const soakRate = 300

// TestSoak injects random faults into one pair for a long time: `make soak`.
func TestSoak(t *testing.T) {
	menu := slices.DeleteFunc(scenarios(), func(sc scenario) bool {
		return sc.load != load{} || sc.before != nil || !sc.rules.IdempotentOK || sc.lane && set.batch == string(amqpx.BatchOff)
	})
	injected := make(map[string]int)
	soak := scenario{
		name: "soak", lasts: set.soak, gap: 2 * time.Second, notice: noticeWithin,
		about: fmt.Sprintf("%d kinds of faults at random for %v", len(menu), set.soak),
		load:  with(func(l *load) { l.rate = soakRate }),
		rules: check.Rules{IdempotentOK: true, Deliveries: deliveries},
		fault: func(s *stage) {
			sc := menu[s.random.IntN(len(menu))]
			t.Logf("%s: %s", time.Now().Format(time.TimeOnly), sc.name)
			injected[sc.name]++
			sc.fault(s)
		},
	}
	run := report.Run{
		Command: fmt.Sprintf("make soak SOAK=%v%s", set.soak, repeats(set.batch)),
		Seed:    set.seed, Broker: major(), Batch: set.batch, Begun: time.Now(),
	}
	var row report.Row
	defer func() {
		run.Rows = append(run.Rows, row)
		for _, name := range slices.Sorted(maps.Keys(injected)) {
			t.Logf("%s: %d times", name, injected[name])
		}
		t.Logf("seed %d repeats this\n%s", set.seed, run.Markdown())
		write(t, run, "soak")
	}()
	play(t, soak, &row)
}
