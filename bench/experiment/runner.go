package experiment

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"time"

	"github.com/google/uuid"
	amqp "github.com/rabbitmq/amqp091-go"

	"rabbitmq-rpc/bench/process"
)

// Runner runs experiments. One goroutine uses it.
type Runner struct {
	Options Options
	Log     io.Writer // of the progress
	queues  []string
}

// Run executes an experiment.
func (r *Runner) Run(ctx context.Context, e Experiment) (*Section, error) {
	s := NewSection(e, r.Options)
	switch e.Name {
	case MemoryUse:
		return s, r.memory(ctx, s)
	case Growth:
		return s, r.growth(ctx, s)
	case Shards:
		return s, r.shards(ctx, s)
	case ScalingNodes, ScalingServers, ScalingClients, ScalingShards:
		return s, r.scaling(ctx, s)
	}
	var groups []*process.Group
	var err error
	for _, setup := range e.setups {
		var g *process.Group
		if g, err = r.start(ctx, setup); err != nil {
			break
		}
		groups = append(groups, g)
	}
	if err == nil {
		err = r.rounds(ctx, s, groups)
	}
	faults := []error{err}
	for _, g := range groups {
		faults = append(faults, g.Stop())
	}
	return s, errors.Join(faults...)
}

// start starts the processes of a setup with a new request queue.
func (r *Runner) start(ctx context.Context, setup process.Setup) (*process.Group, error) {
	return process.Start(ctx, setup, r.queueOf(setup), r.Options.Options)
}

// queueOf returns the name of the first request queue of a new group.
func (r *Runner) queueOf(setup process.Setup) string {
	setup.Env.Queue = "bench." + setup.Contender + "." + uuid.NewString()
	for i := 1; i < setup.Env.Shards; i++ {
		r.queues = append(r.queues, fmt.Sprintf("%s.%d", setup.Env.Queue, i))
	}
	r.queues = append(r.queues, setup.Env.QueueNames()...)
	return setup.Env.Queue
}

// rounds runs every load in every round, with each group once, in the order of turns. The first round
// is the warm-up and is not recorded.
func (r *Runner) rounds(ctx context.Context, s *Section, groups []*process.Group) error {
	p := newMaxima()
	for round := range r.Options.Rounds + 1 {
		for _, l := range s.loads {
			for _, i := range turns(round, len(groups)) {
				g := groups[i]
				t, ok := p.turn(g.Setup, l, round)
				if !ok {
					continue
				}
				if err := ctx.Err(); err != nil {
					return err
				}
				measured, err := g.Run(t)
				if err != nil {
					return err
				}
				sample := newSample(measured)
				r.progress(s.Name, round, l.label, g.Setup.Label, sample)
				if l.most {
					p.found(g.Setup, sample.Rate)
				}
				if round > 0 {
					s.Add(g.Setup.Label, l.label, sample)
				}
			}
		}
	}
	return nil
}

// turns returns the order of the groups in a round. Every round has another order, and every run has
// the same orders. With a fixed order a group would always run after the same neighbour, and effects
// of the neighbour's load on the broker would count for the group.
func turns(round, groups int) []int {
	return rand.New(rand.NewPCG(0, uint64(round))).Perm(groups) //nolint:gosec // not for secrets; a round is not negative.
}

func (r *Runner) progress(name string, round int, load, setup string, s Sample) {
	label := fmt.Sprintf("round %d/%d", round, r.Options.Rounds)
	if round == 0 {
		label = "warm-up"
	}
	_, _ = fmt.Fprintf(r.Log, "%s  %s %-10s %-16s %-24s %8.0f calls/s  p50 %.2f ms  p99 %.2f ms\n", time.Now().Format(time.TimeOnly), name, label, load, setup, s.Rate, s.P50, s.P99)
}

// DeleteQueues deletes the request queues, amqpx's further queues, and its exchanges.
func (r *Runner) DeleteQueues() error {
	conn, err := amqp.Dial(r.Options.URL)
	if err != nil {
		return err
	}
	ch, err := conn.Channel()
	for _, name := range r.queues {
		for _, suffix := range []string{"", ".batch", ".retry", ".dead"} {
			if err == nil {
				_, err = ch.QueueDelete(name+suffix, false, false, false)
			}
		}
		for _, suffix := range []string{".control", ".rpc"} {
			if err == nil {
				err = ch.ExchangeDelete(name+suffix, false, false)
			}
		}
	}
	return errors.Join(err, conn.Close())
}
