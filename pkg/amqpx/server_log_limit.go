package amqpx

import (
	"sync"
	"time"

	"go.uber.org/zap"
)

// logInterval is the time between two log lines of one logLimit.
const logInterval = 30 * time.Second

// logLimit limits the log lines about faults that other programs can cause at any rate.
// The first fault is logged at once; after that at most one line is logged every
// logInterval, with the number of the faults that were not logged before it. Its zero
// value is ready to use. Safe for concurrent use.
type logLimit struct {
	mu      sync.Mutex
	next    time.Time // no line is logged before
	skipped int       // faults since the last line
}

// of returns logger, or one that logs nothing while the limit is reached.
func (l *logLimit) of(logger *zap.Logger) *zap.Logger {
	now := time.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	if now.Before(l.next) {
		l.skipped++
		return zap.NewNop()
	}
	if l.skipped > 0 {
		logger = logger.With(zap.Int("not_logged", l.skipped))
	}
	l.next, l.skipped = now.Add(logInterval), 0
	return logger
}

// serverLogs are the limited log lines of a server, one limit for each kind of fault.
type serverLogs struct {
	badBatch       logLimit // batches, and records in them, that cannot be read
	tooLarge       logLimit // one-way requests and batches that are too large
	deferred       logLimit // requests that find no room
	badControl     logLimit // control messages that cannot be read
	undeliverable  logLimit // responses that end the connection they are published on
	nackedResponse logLimit
	nackedMove     logLimit

	noControl      logLimit // the control plane could not be had
	companion      logLimit // queues that the server does without
	sideConnection logLimit // the connections of server_side_connection.go are down
}
