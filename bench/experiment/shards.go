package experiment

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"

	"github.com/google/uuid"

	"rabbitmq-rpc/bench/contender"
	"rabbitmq-rpc/bench/process"
)

// slowQueue is an Erlang expression that makes the broker's new classic queues slow, if they are
// request queues of the experiment Shards; fastQueue ends that.
//
//go:embed shards_slow.erl
var slowQueue string

const fastQueue = "application:set_env(rabbit, backing_queue_module, rabbit_priority_queue)."

// shardNumbers are the numbers of shards of the experiment.
func shardNumbers() []int { return []int{1, 2, 4, 8} }

// labelSlowQueue is the end of the labels of the setups whose queues are the limit.
const labelSlowQueue = ", queue is the limit"

// shardsExperiment measures one request queue and several, as the machine allows, and where the queue
// is the limit.
func shardsExperiment(o Options) Experiment {
	e := Experiment{
		title: "Shards",
		file:  "shards",
		note: "Closed loop. One client and one server process, with 1, 2, 4 and 8 request queues. Where the queue is the limit, the broker's process of a request queue waits a millisecond " +
			"before it takes a message, without using a processor (bench/experiment/shards_slow.erl): on a machine with few processors no queue is the limit otherwise.",
		loads:  closedLoads(o, []int{64, 256}),
		render: (*Section).shards,
	}
	bases := setupsOf(o, contender.Environment{}, contender.Single, contender.Batched)
	for _, base := range bases {
		for _, n := range shardNumbers() {
			setup := base
			setup.Label, setup.Env.Shards = labelShards(base.Label, n), n
			e.setups = append(e.setups, setup)
		}
	}
	for _, base := range bases {
		if base.Contender != contender.Single || len(o.Control) == 0 {
			continue
		}
		for _, n := range shardNumbers() {
			setup := base
			setup.Label, setup.Env.Shards = labelShards(base.Label, n)+labelSlowQueue, n
			e.setups = append(e.setups, setup)
		}
	}
	return e
}

func labelShards(label string, n int) string { return fmt.Sprintf("%s, K = %d", label, n) }

// isSlow reports whether the request queues of a setup are slow.
func isSlow(setup process.Setup) bool { return strings.HasSuffix(setup.Label, labelSlowQueue) }

// shards runs the experiment: the setups of a kind take turns.
func (r *Runner) shards(ctx context.Context, s *Section) error {
	for _, slow := range []bool{false, true} {
		setups := slices.DeleteFunc(slices.Clone(s.setups), func(e process.Setup) bool { return isSlow(e) != slow })
		if len(setups) == 0 {
			continue
		}
		if err := r.shardsOf(ctx, s, setups, slow); err != nil {
			return err
		}
	}
	return nil
}

// shardsOf runs the setups of a kind.
func (r *Runner) shardsOf(ctx context.Context, s *Section, setups []process.Setup, slow bool) (err error) {
	if slow {
		if err := r.evaluate(ctx, slowQueue); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, r.evaluate(context.WithoutCancel(ctx), fastQueue)) }()
	}
	var groups []*process.Group
	defer func() {
		for _, g := range groups {
			err = errors.Join(err, g.Stop())
		}
	}()
	for _, setup := range setups {
		queue := r.queueOf(setup)
		if slow {
			queue = r.slowQueueOf(setup)
		}
		g, err := process.Start(ctx, setup, queue, r.Options.Options)
		if err != nil {
			return err
		}
		groups = append(groups, g)
	}
	return r.rounds(ctx, s, groups)
}

// slowQueueOf returns the name of the request queue of a setup that shards_slow.erl makes slow.
func (r *Runner) slowQueueOf(setup process.Setup) string {
	queue := "bench.slow." + uuid.NewString()
	r.queues = append(r.queues, queue)
	for i := 1; i < setup.Env.Shards; i++ {
		r.queues = append(r.queues, fmt.Sprintf("%s.%d", queue, i))
	}
	return queue
}

// evaluate evaluates an Erlang expression in the broker.
func (r *Runner) evaluate(ctx context.Context, expression string) error {
	program := append(slices.Clone(r.Options.Control), "eval", expression)
	cmd := exec.CommandContext(ctx, program[0], program[1:]...) //nolint:gosec // a script of this repository.
	cmd.Stderr = os.Stderr
	if out, err := cmd.Output(); err != nil {
		return fmt.Errorf("evaluate in the broker: %w: %s", err, out)
	}
	return nil
}

// shards renders a table for each number of callers, with ratios to one shard.
func (s *Section) shards() string {
	var b strings.Builder
	for _, l := range s.loads {
		fmt.Fprintf(&b, "\n### %s\n", l.label)
		var rows [][]string
		for _, e := range s.setups {
			one := strings.Replace(e.Label, fmt.Sprintf("K = %d", e.Env.Shards), "K = 1", 1)
			of := func(figure func(Sample) float64) Spread { return s.spread(e.Label, l.label, figure) }
			rows = append(rows, []string{
				e.Label, of(rate).format("%.0f"), s.ratio(cell{e.Label, l.label}, cell{one, l.label}, rate).format("%.2f"),
				medians("%.2f", of(p50)), medians("%.2f", of(p99)), s.cpu(e.Label, l.label, "%.1f"),
			})
		}
		table(&b, []string{"setup", "calls/s", "× K = 1", "p50 ms", "p99 ms", s.headOfCPU()}, rows)
	}
	return b.String()
}
