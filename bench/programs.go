package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"rabbitmq-rpc/bench/contender"
	"rabbitmq-rpc/bench/experiment"
)

// buildPrograms compiles the services of this repository into a new directory, if a contender
// without another build needs them. It returns the directory, which remove deletes.
func buildPrograms(ctx context.Context, o experiment.Options) (dir string, remove func(), err error) {
	if !needsPrograms(o.Contenders) {
		return "", func() {}, nil
	}
	root, err := repositoryRoot(ctx)
	if err != nil {
		return "", nil, err
	}
	if dir, err = os.MkdirTemp("", "bench-programs-"); err != nil {
		return "", nil, err
	}
	remove = func() { _ = os.RemoveAll(dir) }
	build := exec.CommandContext(ctx, "go", "build", "-C", root, "-trimpath", "-o", dir+string(filepath.Separator), "./services/...") //nolint:gosec // this repository.
	build.Stderr = os.Stderr
	if err := build.Run(); err != nil {
		remove()
		return "", nil, fmt.Errorf("build the services: %w", err)
	}
	return dir, remove, nil
}

// needsPrograms reports whether a contender runs the services of this repository.
func needsPrograms(labels []string) bool {
	for _, label := range labels {
		name, program := experiment.SplitLabel(label)
		if e, err := contender.Find(name); err == nil && e.Shipped && program == "" {
			return true
		}
	}
	return false
}

// repositoryRoot returns the directory of the module with the services. This program is run in
// the repository's directory bench.
func repositoryRoot(ctx context.Context) (string, error) {
	env := exec.CommandContext(ctx, "go", "env", "GOMOD")
	env.Stderr = os.Stderr
	out, err := env.Output()
	root := filepath.Dir(filepath.Dir(strings.TrimSpace(string(out))))
	if err == nil {
		_, err = os.Stat(filepath.Join(root, "services"))
	}
	if err != nil {
		return "", fmt.Errorf("the services are built only in the directory bench of the repository; else name a build, as in %s@DIR: %w", contender.Pair, err)
	}
	return root, nil
}

// controlProgram returns the command line of the broker's control program, if an experiment needs
// it and the broker's name is known.
func controlProgram(ctx context.Context, o options) ([]string, error) {
	if o.broker == "" || !slices.Contains(o.experiments, experiment.Growth) && !slices.Contains(o.experiments, experiment.Shards) {
		return nil, nil
	}
	root, err := repositoryRoot(ctx)
	if err != nil {
		return nil, err
	}
	return []string{filepath.Join(root, "deploy", "broker.sh"), "ctl", o.broker}, nil
}
