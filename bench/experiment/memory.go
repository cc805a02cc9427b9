package experiment

import (
	"context"
	"errors"

	"rabbitmq-rpc/bench/process"
)

// memory measures every setup in fresh processes in every round, because a process does not
// return freed memory to the system at once.
func (r *Runner) memory(ctx context.Context, s *Section) error {
	for round := range r.Options.Rounds {
		for _, e := range s.setups {
			for _, step := range []struct {
				load    load
				measure func(*process.Group, load) (process.Measurement, error)
			}{
				{s.loads[0], func(g *process.Group, _ load) (process.Measurement, error) { return g.Hold(heldCalls) }},
				{s.loads[1], func(g *process.Group, l load) (process.Measurement, error) { return g.Run(l.turn) }},
			} {
				if e.Env.Async && step.load.label != labelHeld {
					continue // the other load does not differ for Async
				}
				g, err := r.start(ctx, e)
				if err != nil {
					return err
				}
				measured, err := step.measure(g, step.load)
				if err = errors.Join(err, g.Stop()); err != nil {
					return err
				}
				sample := newSample(measured)
				r.progress(s.Name, round+1, step.load.label, e.Label, sample)
				s.Add(e.Label, step.load.label, sample)
			}
		}
	}
	return nil
}
