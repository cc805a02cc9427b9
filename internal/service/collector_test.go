package service

import (
	"errors"
	"math"
	"runtime/debug"
	"testing"

	"github.com/KimMachineGun/automemlimit/memlimit"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"
)

// The test sets the environment and the collector of the process, so it is not parallel.
func TestDefaultsOfTheCollector(t *testing.T) {
	const mib = 1 << 20
	none := func(err error) memlimit.Provider { return func() (uint64, error) { return 0, err } }
	for _, c := range []struct {
		name             string
		gogc, gomemlimit string // an empty variable is like none
		ofContainer      memlimit.Provider
		percent          int
		limit            int64
		warnings         int
	}{
		{"of a container", "", "", memlimit.Limit(250 * mib), gcPercent, 200 * mib, 0},
		{"GOMEMLIMIT is set", "", "100MiB", memlimit.Limit(250 * mib), 100, math.MaxInt64, 0},
		{"GOGC is set", "50", "", memlimit.Limit(250 * mib), 100, math.MaxInt64, 0},
		{"no limit", "", "", none(memlimit.ErrNoLimit), gcPercent, math.MaxInt64, 0},
		{"no container", "", "", none(memlimit.ErrNoCgroup), gcPercent, math.MaxInt64, 0},
		{"another system", "", "", none(memlimit.ErrCgroupsNotSupported), gcPercent, math.MaxInt64, 0},
		{"a limit of 0", "", "", memlimit.Limit(0), gcPercent, math.MaxInt64, 0},
		{"cannot be read", "", "", none(errors.New("failed")), gcPercent, math.MaxInt64, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			limit, percent := debug.SetMemoryLimit(math.MaxInt64), debug.SetGCPercent(100)
			t.Cleanup(func() {
				debug.SetMemoryLimit(limit)
				debug.SetGCPercent(percent)
			})
			t.Setenv("GOGC", c.gogc)
			t.Setenv("GOMEMLIMIT", c.gomemlimit)
			core, logged := observer.New(zapcore.WarnLevel)
			tuneCollector(c.ofContainer, zap.New(core))
			if got := debug.SetMemoryLimit(-1); got != c.limit {
				t.Errorf("limit %d, want %d", got, c.limit)
			}
			if got := debug.SetGCPercent(100); got != c.percent {
				t.Errorf("percent %d, want %d", got, c.percent)
			}
			if logged.Len() != c.warnings {
				t.Errorf("%d warnings, want %d", logged.Len(), c.warnings)
			}
		})
	}
}
