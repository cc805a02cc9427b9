package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/google/uuid"
	amqp "github.com/rabbitmq/amqp091-go"
)

// conductor runs a whole measurement.
type conductor struct {
	opts   options
	log    io.Writer
	queues []string
}

// conduct parses args, runs the experiments and prints the report on standard output. Progress
// goes to standard error. If an experiment fails, the report still contains its samples and
// the earlier experiments.
func conduct(ctx context.Context, args []string) error {
	opts, err := parseOptions(args, os.Stderr)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, opts.limit, fmt.Errorf("the run took longer than %v", opts.limit))
	defer cancel()
	r := newReport(opts, args)
	if r.Machine, err = readMachine(opts.url); err != nil {
		return err
	}
	c := &conductor{opts: opts, log: os.Stderr}
	for _, name := range opts.experiments {
		var s *section
		s, err = c.run(ctx, newExperiment(name, opts))
		if len(s.samples) > 0 {
			s.cut = err != nil
			r.Sections = append(r.Sections, s)
		}
		if err != nil {
			err = fmt.Errorf("%s: %w", name, err)
			break
		}
	}
	if err != nil && ctx.Err() != nil {
		err = errors.Join(context.Cause(ctx), err)
	}
	return errors.Join(err, c.deleteQueues(), r.publish(os.Stdout, opts.out))
}

// run executes an experiment.
func (c *conductor) run(ctx context.Context, e experiment) (*section, error) {
	s := newSection(e, c.opts)
	if e.name == expMemory {
		return s, c.memory(ctx, s)
	}
	var crews []*crew
	var err error
	for _, entrant := range e.lineup {
		var k *crew
		if k, err = c.startCrew(ctx, entrant); err != nil {
			break
		}
		crews = append(crews, k)
	}
	if err == nil {
		err = c.rounds(ctx, s, crews)
	}
	faults := []error{err}
	for _, k := range crews {
		faults = append(faults, k.stop())
	}
	return s, errors.Join(faults...)
}

// rounds runs every load in every round, with each crew in turn. The first round is the
// warm-up and is not recorded.
func (c *conductor) rounds(ctx context.Context, s *section, crews []*crew) error {
	p := newPacing()
	for round := range c.opts.rounds + 1 {
		for _, l := range s.loads {
			for _, k := range crews {
				t, ok := p.turn(k.entrant, l, round)
				if !ok {
					continue
				}
				if err := ctx.Err(); err != nil {
					return err
				}
				sample, err := c.turn(k, t)
				if err != nil {
					return err
				}
				c.progress(s.name, round, l.label, k.entrant.label, sample)
				if l.most {
					p.found(k.entrant, sample.Rate)
				}
				if round > 0 {
					s.add(k.entrant.label, l.label, sample)
				}
			}
		}
	}
	return nil
}

func (c *conductor) progress(name string, round int, load, entrant string, s Sample) {
	label := fmt.Sprintf("round %d/%d", round, c.opts.rounds)
	if round == 0 {
		label = "warm-up"
	}
	_, _ = fmt.Fprintf(c.log, "%s  %s %-10s %-16s %-24s %8.0f calls/s  p50 %.2f ms  p99 %.2f ms\n", time.Now().Format(time.TimeOnly), name, label, load, entrant, s.Rate, s.P50, s.P99)
}

func (c *conductor) newQueue(contender string) string {
	name := "bench." + contender + "." + uuid.NewString()
	c.queues = append(c.queues, name)
	return name
}

// deleteQueues deletes the request queues and amqpx's further queues.
func (c *conductor) deleteQueues() error {
	conn, err := amqp.Dial(c.opts.url)
	if err != nil {
		return err
	}
	ch, err := conn.Channel()
	for _, name := range c.queues {
		for _, suffix := range []string{"", ".batch", ".retry", ".dead"} {
			if err == nil {
				_, err = ch.QueueDelete(name+suffix, false, false, false)
			}
		}
	}
	return errors.Join(err, conn.Close())
}
