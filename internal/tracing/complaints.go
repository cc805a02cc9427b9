package tracing

import (
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"
)

// complainEvery is the pace of one kind of complaint in the log. A collector that is away
// fails an export every few seconds.
const complainEvery = time.Minute

// complaints logs faults of one kind: the first at once, then at most one a minute, with
// what the ones between have lost.
type complaints struct {
	tell    func(fields ...zap.Field)
	secrets []string // taken out of every text

	mu    sync.Mutex
	told  time.Time
	err   error // the last that was not told; nil: none
	spans int   // lost and not told
}

func newComplaints(tell func(fields ...zap.Field), secrets ...string) *complaints {
	return &complaints{tell: tell, secrets: secrets}
}

// hear takes a fault that lost nothing.
func (c *complaints) hear(err error) { c.add(err, 0) }

// add takes a fault that lost spans.
func (c *complaints) add(err error, spans int) {
	if c.note(err, spans, time.Now()) {
		c.flush()
	}
}

// note keeps a fault and reports whether it is time to tell.
func (c *complaints) note(err error, spans int, now time.Time) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.err = err
	c.spans += spans
	due := c.told.IsZero() || now.Sub(c.told) >= complainEvery
	if due {
		c.told = now
	}
	return due
}

// flush tells what was not told.
func (c *complaints) flush() {
	c.mu.Lock()
	err, spans := c.err, c.spans
	c.err, c.spans = nil, 0
	c.mu.Unlock()
	if err == nil {
		return
	}
	fields := []zap.Field{zap.String("error", shortened(withoutSecrets(err.Error(), c.secrets)))}
	if spans > 0 {
		fields = append(fields, zap.Int("spans", spans))
	}
	c.tell(fields...)
}

// shortened bounds a text that may hold all of what a collector answered.
func shortened(s string) string {
	const most = 300
	if len(s) > most {
		s = s[:most] + "…"
	}
	return strings.ToValidUTF8(s, "")
}
