package main

import (
	"context"
	"errors"
	"fmt"
	"os"

	"rabbitmq-rpc/bench/experiment"
)

// runExperiments parses args, runs the experiments and prints the report on standard output.
// Progress goes to standard error. If an experiment fails, the report still contains its
// samples and the earlier experiments.
func runExperiments(ctx context.Context, args []string) error {
	opts, err := parseOptions(args, os.Stderr)
	if err != nil {
		return err
	}
	if opts.model != "" {
		return renderModel(os.Stdout, opts.model, opts.out)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, opts.limit, fmt.Errorf("the run took longer than %v", opts.limit))
	defer cancel()
	r := newReport(opts, args)
	if r.Machine, err = readMachine(opts.URL); err != nil {
		return err
	}
	programs, remove, err := buildPrograms(ctx, opts.Options)
	if err != nil {
		return err
	}
	defer remove()
	opts.Programs = programs
	if opts.Control, err = controlProgram(ctx, opts); err != nil {
		return err
	}
	runner := &experiment.Runner{Options: opts.Options, Log: os.Stderr}
	for _, name := range opts.experiments {
		var s *experiment.Section
		s, err = runner.Run(ctx, experiment.New(name, opts.Options))
		if s.HasSamples() {
			s.Cut = err != nil
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
	return errors.Join(err, runner.DeleteQueues(), r.publish(os.Stdout, opts.out))
}
