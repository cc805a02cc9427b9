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

// pair is a contender's two processes.
type pair struct {
	name           string
	server, client *side
}

// conductor runs one whole measurement.
type conductor struct {
	opts   options
	log    io.Writer
	pairs  []pair
	queues []string
}

// conduct parses args, measures, and prints the report on standard output. Progress
// goes to standard error.
func conduct(ctx context.Context, args []string) error {
	opts, err := parseOptions(args, os.Stderr)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, opts.limit, fmt.Errorf("the run took longer than %v", opts.limit))
	defer cancel()
	m, err := readMachine(opts.url)
	if err != nil {
		return err
	}
	c := &conductor{opts: opts, log: os.Stderr}
	r, err := c.measure(ctx)
	if err != nil && ctx.Err() != nil {
		err = errors.Join(context.Cause(ctx), err)
	}
	if err = errors.Join(err, c.end()); err != nil {
		return err
	}
	r.Machine = m
	_, err = io.WriteString(os.Stdout, r.Markdown())
	return err
}

// measure starts all contenders and lets them take turns.
func (c *conductor) measure(ctx context.Context) (*Report, error) {
	r := newReport(c.opts)
	for _, label := range c.opts.contenders {
		if err := c.start(ctx, label); err != nil {
			return nil, err
		}
	}
	for round := range c.opts.rounds + 1 {
		for _, callers := range c.opts.callers {
			for _, p := range c.pairs {
				s, err := c.turn(p, callers)
				if err != nil {
					return nil, err
				}
				c.progress(round, callers, p.name, s)
				if round > 0 { // the first warms up
					r.Add(p.name, callers, s)
				}
			}
		}
	}
	return r, nil
}

// start starts both sides of a contender on a queue of its own.
func (c *conductor) start(ctx context.Context, label string) error {
	name, program := splitLabel(label)
	env := environment{URL: c.opts.url, Queue: "bench." + name + "." + uuid.NewString()}
	c.queues = append(c.queues, env.Queue)
	p := pair{name: label}
	var err error
	if p.server, err = startSide(ctx, c.brief(roleServer, name, env), program); err != nil {
		return err
	}
	if p.client, err = startSide(ctx, c.brief(roleClient, name, env), program); err != nil {
		return errors.Join(err, p.server.stop())
	}
	c.pairs = append(c.pairs, p)
	return nil
}

func (c *conductor) brief(r role, name string, env environment) brief {
	b := brief{Role: r, Contender: name, Env: env}
	if c.opts.cpuProfile != "" {
		b.CPUProfile = fmt.Sprintf("%s.%s.%s.pprof", c.opts.cpuProfile, name, r)
	}
	return b
}

// turn lets one contender work and reads what both sides used for it.
func (c *conductor) turn(p pair, callers int) (Sample, error) {
	var before, after [2]usage
	sides := [2]*side{p.client, p.server}
	for i, s := range sides {
		r, err := s.ask(command{})
		if err != nil {
			return Sample{}, err
		}
		before[i] = r.Usage
	}
	brokerBefore, err := threadsCPU(c.opts.brokerPID)
	if err != nil {
		return Sample{}, err
	}
	r, err := p.client.ask(command{Turn: &turn{Callers: callers, Duration: c.opts.duration, MaxCalls: c.opts.maxCalls}})
	if err != nil {
		return Sample{}, err
	}
	brokerAfter, err := threadsCPU(c.opts.brokerPID)
	if err != nil {
		return Sample{}, err
	}
	o := *r.Outcome
	if o.Calls == 0 {
		return Sample{}, fmt.Errorf("%s: no call in %v", p.name, c.opts.duration)
	}
	for i, s := range sides {
		r, err := s.ask(command{})
		if err != nil {
			return Sample{}, err
		}
		after[i] = r.Usage
	}
	return newSample(o, after[0].since(before[0]), after[1].since(before[1]), brokerAfter-brokerBefore), nil
}

func (c *conductor) progress(round, callers int, name string, s Sample) {
	label := fmt.Sprintf("round %d/%d", round, c.opts.rounds)
	if round == 0 {
		label = "warm-up"
	}
	_, _ = fmt.Fprintf(c.log, "%s  %-13s %5d callers  %-20s %8.0f calls/s\n", time.Now().Format(time.TimeOnly), label, callers, name, s.Rate)
}

// end stops every process, callers first, and deletes the request queues.
func (c *conductor) end() error {
	var faults []error
	for _, p := range c.pairs {
		faults = append(faults, p.client.stop(), p.server.stop())
	}
	return errors.Join(append(faults, deleteQueues(c.opts.url, c.queues))...)
}

func deleteQueues(url string, names []string) error {
	conn, err := amqp.Dial(url)
	if err != nil {
		return err
	}
	ch, err := conn.Channel()
	for _, name := range names {
		if err == nil {
			_, err = ch.QueueDelete(name, false, false, false)
		}
	}
	return errors.Join(err, conn.Close())
}
