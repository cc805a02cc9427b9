package stream

import (
	"sync"
	"sync/atomic"
	"time"

	"rabbitmq-rpc/pkg/amqpx/internal/wire"
)

// Bounds and defaults.
const (
	// firstItems and firstBytes bound the items of an opening: they need no credit.
	firstItems = 64
	firstBytes = 64 << 10
	// initialItems and initialBytes are the first window of a stream, unless its limit is lower.
	initialItems = 1024
	initialBytes = 64 << 10
	// MaxWindowItems and MaxWindowBytes are the default limits of a window.
	MaxWindowItems = 16384
	MaxWindowBytes = 1 << 20
	// sendBuffer is the size of the items that wait in a stream until Send waits.
	sendBuffer = 128 << 10
	// keptBuffer bounds the memory of an empty send buffer that is kept.
	keptBuffer = 256 << 10
	// messageBytes bounds a message, unless one item is larger.
	messageBytes = 64 << 10
	// minShare is the least share of a stream in a message.
	minShare = 4 << 10
	// clockWindow bounds the unconfirmed messages to a peer.
	clockWindow = 2
	// maxControl bounds the frames without a stream that wait for a peer, in bytes.
	maxControl = 64 << 10
	// maxHeaders bounds the headers of a server, each of which counts headerOverhead more.
	maxHeaders     = 1 << 20
	headerOverhead = 64
	// maxPeers bounds the peers without streams, which only get a reset.
	maxPeers = 1024
	// deadAfter is the time without an answer to two confirmed pings, one after the other, in
	// multiples of the keep-alive time, after which a peer is gone; a server waits serverPatience
	// times as long before its first ping.
	deadAfter      = 4
	serverPatience = 2
	// reopenMin and reopenMax bound the pause before a returned opening is published again.
	reopenMin = 100 * time.Millisecond
	reopenMax = time.Second
)

// Config has the settings of a table. It does not change.
type Config struct {
	// Server is true for the streams of a server.
	Server bool
	// KeepAlive is the time of silence of a peer after which it gets a ping.
	KeepAlive time.Duration
	// Memory bounds the windows of all streams in bytes. Beyond it windows do not grow.
	Memory int64
	// OnWaiting is called when a stream of a client waits and there is no link; may be nil.
	OnWaiting func()
}

// Table has the streams of a client or a server. Safe for concurrent use.
type Table struct {
	cfg    Config
	Counts Counts

	mu      sync.Mutex
	link    *Link     // the current link; nil if there is none
	waiting []*Stream // streams of a client whose openings were not written, without a link
	windows int64     // the sum of the windows of all open streams
	last    uint64    // the number of the last stream of a client
	closed  bool
	due     due
}

// due is what is to be done when the lock is free.
type due struct {
	messages []*Message
	calls    []func()
}

// Counts are the counts of a table.
type Counts struct {
	// Open is the number of open streams. Opened counts the streams, Failed those that ended with
	// a failure, and Late the frames of unknown streams.
	Open                     atomic.Int64
	Opened, Failed, Late     atomic.Uint64
	ItemsSent, ItemsReceived atomic.Uint64
	BytesSent, BytesReceived atomic.Uint64
	// Messages counts the messages that were written.
	Messages atomic.Uint64
	// SendWait is how long Send has waited, in nanoseconds.
	SendWait atomic.Int64
}

// NewTable returns a table without streams.
func NewTable(cfg Config) *Table { return &Table{cfg: cfg} }

// unlock unlocks the table, and does what became due under the lock.
func (t *Table) unlock() {
	if len(t.due.messages)+len(t.due.calls) == 0 { // so it is for most items
		t.mu.Unlock()
		return
	}
	d := t.due
	t.due = due{}
	t.mu.Unlock()
	for _, m := range d.messages {
		m.link.publish(m)
	}
	for _, call := range d.calls {
		call()
	}
}

// NewStream returns a stream of a client, which is not open yet.
func (t *Table) NewStream(o *Options) *Stream {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.last++
	s := t.newStream(t.last, o)
	s.creditItems, s.creditBytes = firstItems, firstBytes
	return s
}

// newStream returns a stream. The caller holds mu.
func (t *Table) newStream(number uint64, o *Options) *Stream {
	s := &Stream{table: t, number: number, options: *o, done: make(chan struct{})}
	s.windowItems, s.windowBytes = min(initialItems, o.WindowItems), min(initialBytes, o.WindowBytes)
	return s
}

// count counts a stream as open. The caller holds mu.
func (t *Table) count(s *Stream) {
	s.counted = true
	t.windows += int64(s.windowBytes)
	t.Counts.Opened.Add(1)
	t.Counts.Open.Add(1)
}

// Close ends all streams, and those that are opened later.
func (t *Table) Close() {
	t.mu.Lock()
	defer t.unlock()
	t.closed = true
	waiting := t.waiting
	t.waiting = nil
	for _, s := range waiting {
		s.abandon(&Result{Reason: ReasonClosed}, nil)
	}
	if t.link != nil {
		for _, s := range t.link.all() {
			s.abandon(&Result{Reason: ReasonClosed}, closedEnd(t.cfg.Server))
		}
	}
}

// closedEnd is what the peer is told when the table is closed.
func closedEnd(server bool) *wire.End {
	if server {
		return &wire.End{Failure: &wire.Failure{Code: "unavailable", Message: "the server was stopped"}}
	}
	return canceledEnd()
}

// canceledEnd is the reset of a canceled stream.
func canceledEnd() *wire.End { return &wire.End{Failure: &wire.Failure{Code: "canceled"}} }

// Link returns the current link, or nil.
func (t *Table) Link() *Link {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.link
}

// FailWaiting ends the streams that wait for a link.
func (t *Table) FailWaiting(cause error) {
	t.mu.Lock()
	defer t.unlock()
	waiting := t.waiting
	t.waiting = nil
	for _, s := range waiting {
		s.finish(&Result{Reason: ReasonLinkLost, Cause: cause})
	}
}

// await puts a stream of a client among those that wait for a link. The caller holds mu.
func (t *Table) await(s *Stream) {
	s.link = nil
	t.waiting = append(t.waiting, s)
	if t.cfg.OnWaiting != nil {
		t.due.calls = append(t.due.calls, t.cfg.OnWaiting)
	}
}

// HasWaiting reports whether streams wait for a link.
func (t *Table) HasWaiting() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.waiting) > 0
}
