package main

import (
	"fmt"
	"sync"
	"time"

	"rabbitmq-rpc/pkg/amqpx"
	"rabbitmq-rpc/test/fault/internal/items"
	"rabbitmq-rpc/test/fault/internal/ledger"
)

// planHeader is the name of the header with the plan of a stream.
const planHeader = "plan"

// plan is what a stream is to do.
type plan struct {
	id string
	// items is the number of items of the sending side, of size bytes, with a pause of pace between
	// two of them.
	items, size int
	pace        time.Duration
}

// text returns the plan as it travels.
func (p *plan) text() string { return fmt.Sprintf("%s %d %d %d", p.id, p.items, p.size, p.pace) }

// parsePlan is the inverse of text.
func parsePlan(text any) (p plan, err error) {
	if _, err = fmt.Sscanf(fmt.Sprint(text), "%s %d %d %d", &p.id, &p.items, &p.size, &p.pace); err != nil {
		return p, amqpx.Errorf(amqpx.CodeInvalidArgument, "plan %q: %w", text, err)
	}
	return p, nil
}

// send sends the items of the plan, until send fails or stop is closed. It returns how many it sent.
func (p *plan) send(d items.Direction, stop <-chan struct{}, send func([]byte) error) (sent int, err error) {
	for n := range p.items {
		if p.pace > 0 && !wait(stop, p.pace) {
			return n, nil
		}
		if err := send(items.Item(p.id, d, n, p.size)); err != nil {
			return n, err
		}
	}
	return p.items, nil
}

// pulse measures the longest time between two events. Safe for concurrent use.
type pulse struct {
	mu      sync.Mutex
	last    time.Time
	longest time.Duration
	at      time.Time // when the longest began
}

func newPulse() *pulse { return &pulse{last: time.Now()} }

func (p *pulse) beat() {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	if d := now.Sub(p.last); d > p.longest {
		p.longest, p.at = d, p.last
	}
	p.last = now
}

// tell writes the longest time into an entry.
func (p *pulse) tell(f *ledger.Flow) {
	p.beat()
	p.mu.Lock()
	defer p.mu.Unlock()
	f.Silence, f.SilentAt = p.longest, p.at
}

// told writes what the library said of a stream.
func told(f *ledger.Flow, p amqpx.Progress) {
	f.ToldSent, f.ToldTaken, f.ToldReceived = int(p.Sent), int(p.Taken), int(p.Received)
}
