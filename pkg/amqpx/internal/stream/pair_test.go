package stream

import (
	"errors"
	"io"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"rabbitmq-rpc/pkg/amqpx/internal/wire"
)

// network is a broker for one client and some servers: it takes messages, confirms them, and
// delivers them at once, unless a test holds something back.
type network struct {
	t       *testing.T
	mu      sync.Mutex
	queues  map[string]func(from string, m []byte) // missing: a message is returned
	servers []*side
	next    int
	hold    bool   // messages wait to be written, as while the broker blocks publishing
	spare   string // the side whose next message is written all the same
	mute    bool   // messages are confirmed and lost
	held    []func()
	sent    map[string]int // messages by sender
	links   []*Link
}

// side is a client or a server with its link.
type side struct {
	net   *network
	name  string
	table *Table
	link  *Link
	serve func(s *Stream)
}

func newNetwork() *network {
	return &network{queues: make(map[string]func(string, []byte)), sent: make(map[string]int)}
}

const testKeepAlive = 2 * time.Second

func (n *network) side(name string, serve func(s *Stream)) *side {
	d := &side{net: n, name: name, serve: serve}
	d.table = NewTable(Config{Server: serve != nil, KeepAlive: testKeepAlive, Memory: 256 << 20})
	d.connect()
	if serve != nil {
		n.servers = append(n.servers, d)
	}
	return d
}

// connect makes a link. Its messages are written one at a time, in order.
func (d *side) connect() {
	var (
		mu      sync.Mutex
		waiting []*Message
	)
	write := func() {
		for {
			mu.Lock()
			if len(waiting) == 0 {
				waiting = nil
				mu.Unlock()
				return
			}
			m := waiting[0]
			mu.Unlock()
			d.net.write(d, m)
			mu.Lock()
			waiting = waiting[1:]
			mu.Unlock()
		}
	}
	l := d.table.NewLink(d.name, func(m *Message) {
		mu.Lock()
		defer mu.Unlock()
		if waiting = append(waiting, m); len(waiting) == 1 {
			go write()
		}
	})
	d.net.mu.Lock()
	defer d.net.mu.Unlock()
	d.link = l
	d.net.queues[d.name] = func(from string, body []byte) { l.Receive(from, "", body) }
	d.net.links = append(d.net.links, l)
}

// lose ends the link of a side: its queue is gone.
func (d *side) lose() {
	d.net.mu.Lock()
	delete(d.net.queues, d.name)
	d.net.mu.Unlock()
	d.link.End(errors.New("connection reset"))
}

func (n *network) write(d *side, m *Message) {
	n.mu.Lock()
	if n.hold && n.spare == d.name {
		n.spare = ""
	} else if n.hold {
		n.held = append(n.held, func() { n.write(d, m) })
		n.mu.Unlock()
		return
	}
	n.mu.Unlock()
	if !m.Begin() {
		return
	}
	body := append([]byte{}, m.Body()...)
	n.mu.Lock()
	n.sent[d.name]++
	mute := n.mute
	to := n.queues[m.Queue()]
	var server *side
	if len(n.servers) > 0 {
		server = n.servers[n.next%len(n.servers)]
	}
	opening := m.Opening() != nil
	if opening {
		n.next++
	}
	n.mu.Unlock()
	switch {
	case mute:
	case opening && server == nil:
		d.link.Returned("", m.Opening().Number())
	case opening:
		server.open(d.name, body)
	case to == nil:
		d.link.Returned(m.Queue(), 0)
	default:
		to(d.name, body)
	}
	m.Confirmed()
}

func (n *network) setHold(on bool) {
	n.mu.Lock()
	n.hold = on
	held := n.held
	n.held = nil
	n.mu.Unlock()
	for _, f := range held {
		f()
	}
}

func (n *network) count(name string) int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.sent[name]
}

// open handles an opening in a server.
func (d *side) open(from string, body []byte) {
	_ = wire.DecodeFrames(body, func(f *wire.Frame) bool {
		s := d.link.Open(from, "", f, len(body), windows())
		if s != nil {
			go d.serve(s)
		}
		return false
	})
}

func windows() *Options { return &Options{WindowItems: MaxWindowItems, WindowBytes: MaxWindowBytes} }

// echoes is a server that sends back what it receives.
func echoes(s *Stream) {
	s.Accept(func() {})
	for {
		item, err := s.Receive()
		if errors.Is(err, io.EOF) {
			s.Finish(&wire.End{}, func() {})
			return
		}
		if err != nil || s.Send(item) != nil {
			return
		}
	}
}

// sends is a server that sends n items of a size, each time it is opened.
func sends(n, size int) func(s *Stream) {
	return func(s *Stream) {
		s.Accept(func() {})
		item := make([]byte, size)
		for range n {
			if s.Send(item) != nil {
				return
			}
		}
		s.Finish(&wire.End{}, func() {})
	}
}

// inBubble runs a test with virtual time, and ends the links afterwards.
func inBubble(t *testing.T, f func(n *network)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork()
		n.t = t
		f(n)
		for _, l := range n.links {
			l.End(nil)
		}
	})
}

func wantSame[T comparable](t *testing.T, what string, got, want T) {
	t.Helper()
	if got != want {
		t.Errorf("%s: %v, want %v", what, got, want)
	}
}

// receiveAll takes all items.
func receiveAll(s *Stream) (n int, err error) {
	for {
		_, err := s.Receive()
		if err != nil {
			return n, err
		}
		n++
	}
}

func wantResult(t *testing.T, s *Stream, reason Reason, p Progress) {
	t.Helper()
	r := s.Result()
	if r == nil {
		t.Errorf("the stream has not ended, want reason %d", reason)
		return
	}
	wantSame(t, "reason", r.Reason, reason)
	wantSame(t, "progress", r.Progress, p)
}

// setMute makes the network swallow all messages from now on.
func (n *network) setMute() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.mute = true
}
