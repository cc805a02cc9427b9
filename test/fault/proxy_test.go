//go:build fault

package fault

import (
	"context"
	"math/rand/v2"
	"net"
	"net/url"
	"sync"
	"testing"
	"time"

	"rabbitmq-rpc/test/internal/rig"
)

// The proxies of the suite. They were toxiproxy's, whose lock can wait for a connection that ends
// while a fault begins: then the connection waits for the lock, and the suite stands still.

// direction is a direction of data through a proxy.
type direction int

const (
	up   direction = iota // to the broker
	down                  // from the broker
)

// impairment is a fault of one direction; the zero value is none.
type impairment struct {
	latency, jitter time.Duration // of each packet
	rate            int           // in bytes per second; 0: no limit
	slice           int           // average size of the pieces in which data arrives, 50 µs apart; 0: as it comes
	limit           int           // the connection ends after so many bytes; 0: no limit
	vanish          bool          // data is lost, and the connection ends with the impairment
	reset           bool          // the next packet ends the connection by a RST to both sides
}

const (
	// packetSize is the largest size of a packet: a read of a socket.
	packetSize = 32 << 10
	// packets bounds the packets that are late at once.
	packets = 1024
	// sliceDelay is the time between two slices.
	sliceDelay = 50 * time.Microsecond
	// rateStep is the length of data that a limited connection writes at once.
	rateStep = 100 * time.Millisecond
)

// proxy is the path of some processes to the broker.
type proxy struct {
	t      testing.TB
	url    string
	listen string // address
	broker string
	wg     sync.WaitGroup

	mu       sync.Mutex
	listener net.Listener // nil while the proxy is cut
	pipes    map[*pipe]bool
	impaired [2]impairment
	changed  chan struct{} // closed when impaired changes
}

// newProxy returns a proxy in front of the broker at amqpURL, which ends with the test.
func newProxy(t testing.TB, amqpURL string) *proxy {
	t.Helper()
	p := &proxy{t: t, listen: "127.0.0.1:0", pipes: make(map[*pipe]bool), changed: make(chan struct{})}
	rig.Rewrite(t, amqpURL, func(u *url.URL) { p.broker = u.Host })
	if err := p.start(); err != nil {
		t.Fatalf("proxy: %v", err)
	}
	p.url = rig.Rewrite(t, amqpURL, func(u *url.URL) { u.Host = p.listen })
	t.Cleanup(func() {
		p.stop()
		p.wg.Wait()
	})
	return p
}

// start accepts connections, at the same address each time.
func (p *proxy) start() error {
	l, err := new(net.ListenConfig).Listen(context.WithoutCancel(p.t.Context()), "tcp", p.listen)
	if err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.listener, p.listen = l, l.Addr().String()
	p.wg.Go(func() { p.accept(l) }) // ends with the listener
	return nil
}

// stop closes all connections and refuses new ones.
func (p *proxy) stop() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.listener != nil {
		_ = p.listener.Close()
		p.listener = nil
	}
	for l := range p.pipes {
		l.close()
	}
}

func (p *proxy) accept(l net.Listener) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		p.wg.Go(func() { p.serve(l, conn) }) // ends with its connection
	}
}

// serve connects an accepted connection to the broker, and carries data until either side ends.
func (p *proxy) serve(accepted net.Listener, conn net.Conn) {
	broker, err := new(net.Dialer).DialContext(context.WithoutCancel(p.t.Context()), "tcp", p.broker)
	if err != nil {
		_ = conn.Close()
		return
	}
	l := &pipe{proxy: p, ends: [2]net.Conn{up: broker, down: conn}, done: make(chan struct{})}
	p.mu.Lock()
	if p.listener != accepted { // cut meanwhile
		p.mu.Unlock()
		l.close()
		return
	}
	p.pipes[l] = true
	p.mu.Unlock()
	var carriers sync.WaitGroup
	for _, d := range []direction{up, down} {
		arrived := make(chan packet, packets)
		carriers.Go(func() { l.read(l.ends[1-d], arrived) })
		carriers.Go(func() { l.write(d, arrived) })
	}
	carriers.Wait()
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.pipes, l)
}

// impairment returns the present fault of a direction, and a channel that is closed when it changes.
func (p *proxy) impairment(d direction) (impairment, <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.impaired[d], p.changed
}

// impair begins a fault in a direction, and returns a function that ends it.
func (p *proxy) impair(d direction, im impairment) (heal func()) {
	set := func(im impairment) {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.impaired[d] = im
		close(p.changed)
		p.changed = make(chan struct{})
	}
	set(im)
	return func() {
		set(impairment{})
		p.mu.Lock()
		defer p.mu.Unlock()
		for l := range p.pipes {
			if l.hasLost() {
				l.close()
			}
		}
	}
}

// cut closes every connection and refuses new connections until restore is called.
func (p *proxy) cut() (restore func()) {
	p.t.Helper()
	p.stop()
	return func() {
		if err := p.start(); err != nil {
			p.t.Errorf("proxy: %v", err)
		}
	}
}

// pipe is a connection through a proxy.
type pipe struct {
	proxy *proxy
	ends  [2]net.Conn // by the direction in which data is written to them
	once  sync.Once
	done  chan struct{} // closed by close

	mu   sync.Mutex
	lost bool // data has vanished
}

// packet is data that has arrived at a proxy.
type packet struct {
	data []byte
	at   time.Time
}

func (l *pipe) close() {
	l.once.Do(func() {
		close(l.done)
		for _, end := range l.ends {
			_ = end.Close()
		}
	})
}

// reset closes the connection by a RST to both sides.
func (l *pipe) reset() {
	for _, end := range l.ends {
		if tcp, ok := end.(*net.TCPConn); ok {
			_ = tcp.SetLinger(0)
		}
	}
	l.close()
}

func (l *pipe) hasLost() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.lost
}

func (l *pipe) lose() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lost = true
}

// read passes on what arrives at an end, until the end or the pipe is closed.
func (l *pipe) read(from net.Conn, arrived chan<- packet) {
	defer close(arrived)
	buffer := make([]byte, packetSize)
	for {
		n, err := from.Read(buffer)
		if n > 0 {
			select {
			case arrived <- packet{append([]byte(nil), buffer[:n]...), time.Now()}:
			case <-l.done:
				return
			}
		}
		if err != nil {
			return
		}
	}
}

// write writes packets in a direction, with the impairment of the moment, and closes the pipe after
// the last one.
func (l *pipe) write(d direction, arrived <-chan packet) {
	defer l.close()
	left := 0 // until the limit
	limited := impairment{}
	for p := range arrived {
		im, changed := l.proxy.impairment(d)
		if im.limit > 0 && im != limited {
			left = im.limit
		}
		limited = im
		switch {
		case im.reset:
			l.reset()
			return
		case im.vanish:
			l.lose()
			continue
		case im.limit > 0 && len(p.data) >= left:
			_, _ = l.ends[d].Write(p.data[:left])
			return
		case im.latency > 0:
			late := im.latency
			if im.jitter > 0 {
				late += rand.N(2*im.jitter) - im.jitter
			}
			if !l.wait(time.Until(p.at.Add(late)), changed) {
				return
			}
		}
		left -= len(p.data)
		if !l.writePieces(d, im, p.data, changed) {
			return
		}
	}
}

// writePieces writes data, in pieces if the impairment demands it. It returns false if the pipe is
// closed.
func (l *pipe) writePieces(d direction, im impairment, data []byte, changed <-chan struct{}) bool {
	for len(data) > 0 {
		n, pause := len(data), time.Duration(0)
		switch {
		case im.slice > 0:
			n, pause = min(n, im.slice/2+rand.N(im.slice)+1), sliceDelay
		case im.rate > 0:
			n = min(n, max(int(float64(im.rate)*rateStep.Seconds()), 1))
			pause = time.Duration(n) * time.Second / time.Duration(im.rate)
		}
		if _, err := l.ends[d].Write(data[:n]); err != nil {
			return false
		}
		if data = data[n:]; pause > 0 && !l.wait(pause, changed) {
			return false
		}
	}
	return true
}

// wait waits for a time, or until the impairment changes. It returns false if the pipe is closed.
func (l *pipe) wait(d time.Duration, changed <-chan struct{}) bool {
	if d > 0 {
		timer := time.NewTimer(d)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-changed:
		case <-l.done:
		}
	}
	select {
	case <-l.done:
		return false
	default:
		return true
	}
}
