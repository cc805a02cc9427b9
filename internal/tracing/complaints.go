package tracing

import (
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"
)

// complainEvery is the minimum time between log lines of one kind. While a collector is
// unreachable, an export fails every few seconds.
const complainEvery = time.Minute

// complaints logs faults of one kind: the first at once, and then at most one per minute, with
// the number of spans lost since the last line.
type complaints struct {
	tell    func(fields ...zap.Field)
	secrets []string // removed from every text

	mu    sync.Mutex
	told  time.Time
	err   error // the last fault not yet logged; nil: none
	spans int   // lost and not yet logged
}

func newComplaints(tell func(fields ...zap.Field), secrets ...string) *complaints {
	return &complaints{tell: tell, secrets: secrets}
}

// hear adds a fault without lost spans.
func (c *complaints) hear(err error) { c.add(err, 0) }

// add adds a fault with lost spans.
func (c *complaints) add(err error, spans int) {
	if c.note(err, spans, time.Now()) {
		c.flush()
	}
}

// note stores a fault and reports whether a log line is due.
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

// flush logs the faults that were not yet logged.
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

// shortened limits a text that may contain a collector's whole response.
func shortened(s string) string {
	const most = 300
	if len(s) > most {
		s = s[:most] + "…"
	}
	return strings.ToValidUTF8(s, "")
}
