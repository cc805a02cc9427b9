package experiment

import (
	"fmt"
	"strings"
	"time"

	"rabbitmq-rpc/bench/contender"
)

// The load of the experiment Priority.
const (
	urgentWorkers  = 8
	urgentSleep    = time.Millisecond
	urgentCallers  = 2000
	urgentEvery    = 100
	urgentPriority = 5
)

// priorityExperiment measures how long urgent calls take among calls that wait for workers.
func priorityExperiment(o Options) Experiment {
	e := Experiment{
		title: "Priority",
		note: fmt.Sprintf("Closed loop of %d callers on one server with %d workers, whose handlers sleep %v; every %dth call is urgent. "+
			"Urgent calls without and with priority %d, in the request queues named.", urgentCallers, urgentWorkers, urgentSleep, urgentEvery, urgentPriority),
		render: (*Section).priorities,
	}
	for _, base := range setupsOf(o, contender.Environment{Workers: urgentWorkers, Sleep: urgentSleep}, contender.Single, contender.Batched) {
		for _, queue := range []struct {
			label       string
			quorum      bool
			maxPriority uint8
		}{{"classic", false, 0}, {"classic, x-max-priority", false, urgentPriority}, {"quorum", true, 0}} {
			for _, priority := range []uint8{0, urgentPriority} {
				setup := base
				setup.Label = fmt.Sprintf("%s, %s, priority %d", base.Label, queue.label, priority)
				setup.Env.Quorum, setup.Env.MaxPriority, setup.Env.Priority = queue.quorum, queue.maxPriority, priority
				e.setups = append(e.setups, setup)
			}
		}
	}
	l := closedLoads(o, []int{urgentCallers})[0]
	l.turn.ApartEvery, l.turn.Apart = urgentEvery, contender.MethodUrgent
	e.loads = []load{l}
	return e
}

// priorities renders the latencies of urgent and other calls.
func (s *Section) priorities() string {
	var b strings.Builder
	var rows [][]string
	for _, e := range s.setups {
		of := func(figure func(Sample) float64) string {
			return s.spread(e.Label, s.loads[0].label, figure).format("%.1f")
		}
		rows = append(rows, []string{
			e.Label, of(apartP50), of(apartP99), of(p50), of(p99), s.spread(e.Label, s.loads[0].label, rate).format("%.0f"),
		})
	}
	table(&b, []string{"contender, queue, urgent calls", "urgent p50 ms", "urgent p99 ms", "others p50 ms", "others p99 ms", "calls/s"}, rows)
	return b.String()
}
