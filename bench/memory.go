package main

import (
	"context"
	"errors"
)

// memory measures every entrant in fresh processes in every round, because a process does not
// return freed memory to the system at once.
func (c *conductor) memory(ctx context.Context, s *section) error {
	for round := range c.opts.rounds {
		for _, e := range s.lineup {
			for _, step := range []struct {
				load    load
				measure func(*crew, load) (Sample, error)
			}{
				{s.loads[0], func(k *crew, _ load) (Sample, error) { return c.hold(k) }},
				{s.loads[1], func(k *crew, l load) (Sample, error) { return c.turn(k, l.turn) }},
			} {
				if e.env.Async && step.load.label != labelHeld {
					continue // the other load does not differ for Async
				}
				k, err := c.startCrew(ctx, e)
				if err != nil {
					return err
				}
				sample, err := step.measure(k, step.load)
				if err = errors.Join(err, k.stop()); err != nil {
					return err
				}
				c.progress(s.name, round+1, step.load.label, e.label, sample)
				s.add(e.label, step.load.label, sample)
			}
		}
	}
	return nil
}

// hold measures a client with many calls in flight, then releases the calls and waits for the
// responses.
func (c *conductor) hold(k *crew) (Sample, error) {
	before, err := c.consumption(k)
	if err != nil {
		return Sample{}, err
	}
	if _, err := k.client.ask(command{Hold: heldCalls}); err != nil {
		return Sample{}, err
	}
	during, err := c.consumption(k)
	if err != nil {
		return Sample{}, err
	}
	for _, s := range k.servers {
		if _, err := s.ask(command{Release: true}); err != nil {
			return Sample{}, err
		}
	}
	r, err := k.client.ask(command{Settle: true})
	if err != nil {
		return Sample{}, err
	}
	after, err := c.consumption(k)
	if err != nil {
		return Sample{}, err
	}
	s := newSample(*r.Outcome, before, after)
	s.Memory = newMemory(during)
	return s, nil
}
