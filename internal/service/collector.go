package service

import (
	"errors"
	"os"
	"runtime/debug"

	"github.com/KimMachineGun/automemlimit/memlimit"
	"go.uber.org/zap"
)

const (
	// gcPercent is the default of GOGC. With Go's own default of 100 the collector runs twice as
	// often; docs/performance.md has the difference.
	gcPercent = 200
	// memoryShare is the share of the container's memory that the Go runtime uses before the
	// collector runs more often. The rest is for memory that the runtime does not count, and for
	// the growth during a collection.
	memoryShare = 0.8
)

// tuneCollector sets the defaults of the garbage collector: gcPercent, and memoryShare of the
// memory limit of the container's cgroup, of version 2 or 1, if there is a limit. It changes
// nothing if the environment sets GOGC or GOMEMLIMIT.
func tuneCollector(ofContainer memlimit.Provider, logger *zap.Logger) {
	for _, name := range []string{"GOGC", "GOMEMLIMIT"} {
		if os.Getenv(name) != "" {
			return
		}
	}
	debug.SetGCPercent(gcPercent)
	limit, err := memlimit.ApplyRatio(ofContainer, memoryShare)()
	switch {
	case err == nil && limit > 0:
		debug.SetMemoryLimit(int64(limit)) //nolint:gosec // a share of a number below 1<<64.
		logger.Debug("memory limit of the Go runtime", zap.Uint64("bytes", limit))
	case err == nil, errors.Is(err, memlimit.ErrNoLimit), errors.Is(err, memlimit.ErrNoCgroup), errors.Is(err, memlimit.ErrCgroupsNotSupported):
	default:
		logger.Warn("the memory limit of the container cannot be read: the Go runtime has none", zap.Error(err))
	}
}
