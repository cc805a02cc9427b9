package rig

import (
	"encoding/binary"
	"io"
	"net"
	"net/url"
	"strconv"
	"sync"
	"testing"

	amqp "github.com/rabbitmq/amqp091-go"
)

// Proxy stands between a broker and the clients of the proxy's URL, and closes connections on
// command. It parses AMQP frames to detect the methods of type Word.
type Proxy struct {
	t        testing.TB
	listener net.Listener
	broker   string // host:port
	url      string
	words    map[Word]chan struct{}
	wg       sync.WaitGroup

	mu     sync.Mutex
	pipes  map[*pipe]struct{}
	closed bool
	refuse bool
	muted  chan struct{} // closed by Unmute; nil while the broker's frames pass
	muteAt Word          // of MuteAt
}

// Word is a method of the broker about a message or a channel: class and method ID of AMQP
// 0-9-1 section 1.8.
type Word uint32

// The methods known to Heard.
const (
	CloseChannel Word = 20<<16 | 40 // refuses an operation on the channel
	Return       Word = 60<<16 | 50
	Deliver      Word = 60<<16 | 60
	Ack          Word = 60<<16 | 80
	Nack         Word = 60<<16 | 120
)

// wordsKept bounds the methods of one kind remembered for Heard.
const wordsKept = 1 << 16

// Proxy returns a proxy in front of the rig's broker, which ends with the test.
func (r *Rig) Proxy() *Proxy {
	r.t.Helper()
	uri, err := amqp.ParseURI(r.URL)
	if err != nil {
		r.t.Fatalf("the broker's URL: %v", err)
	}
	l, err := new(net.ListenConfig).Listen(r.t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		r.t.Fatalf("proxy: %v", err)
	}
	p := &Proxy{
		t:        r.t,
		listener: l,
		broker:   net.JoinHostPort(uri.Host, strconv.Itoa(uri.Port)),
		url:      Rewrite(r.t, r.URL, func(u *url.URL) { u.Host = l.Addr().String() }),
		words: map[Word]chan struct{}{
			CloseChannel: make(chan struct{}, wordsKept),
			Return:       make(chan struct{}, wordsKept),
			Deliver:      make(chan struct{}, wordsKept),
			Ack:          make(chan struct{}, wordsKept),
			Nack:         make(chan struct{}, wordsKept),
		},
		pipes: make(map[*pipe]struct{}),
	}
	p.wg.Go(p.accept) // ends when the listener is closed
	r.t.Cleanup(p.close)
	return p
}

// URL is the AMQP URL that leads through the proxy.
func (p *Proxy) URL() string { return p.url }

// Cut closes every connection. New connections are accepted unless Refuse was called.
func (p *Proxy) Cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.pipes {
		c.cut()
	}
}

// Refuse switches the refusal of new connections on or off.
func (p *Proxy) Refuse(on bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.refuse = on
}

// Mute holds back all frames of the broker. Frames still held back when a connection is cut
// are lost.
func (p *Proxy) Mute() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.muted == nil {
		p.muted = make(chan struct{})
	}
}

// MuteAt is Mute at the broker's next such method, which is the first frame held back.
func (p *Proxy) MuteAt(w Word) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.muteAt = w
}

// Unmute lets the broker's frames pass again.
func (p *Proxy) Unmute() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.muteAt = 0
	if p.muted != nil {
		close(p.muted)
		p.muted = nil
	}
}

// Heard receives once for every such method forwarded from the broker. One Ack or Nack may
// cover several messages.
func (p *Proxy) Heard(w Word) <-chan struct{} { return p.words[w] }

func (p *Proxy) close() {
	_ = p.listener.Close()
	p.mu.Lock()
	p.closed = true
	for c := range p.pipes {
		c.close()
	}
	p.mu.Unlock()
	p.Unmute()
	p.wg.Wait()
}

func (p *Proxy) accept() {
	for {
		client, err := p.listener.Accept()
		if err != nil {
			return
		}
		p.wg.Go(func() { p.serve(client) }) // ends with its connection
	}
}

func (p *Proxy) serve(client net.Conn) {
	broker, err := new(net.Dialer).DialContext(p.t.Context(), "tcp", p.broker)
	if err != nil {
		_ = client.Close()
		return
	}
	c := &pipe{client: client, broker: broker, severed: make(chan struct{}), gone: make(chan struct{})}
	defer c.close()
	if !p.add(c) {
		return
	}
	defer p.remove(c)
	p.wg.Go(func() { // ends when either side hangs up
		_, _ = io.Copy(broker, client)
		c.close()
	})
	p.fromBroker(c)
}

func (p *Proxy) add(c *pipe) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed || p.refuse {
		return false
	}
	p.pipes[c] = struct{}{}
	return true
}

func (p *Proxy) remove(c *pipe) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.pipes, c)
}

// fromBroker forwards frames one at a time (AMQP 0-9-1 section 2.3.5) until the connection
// ends.
func (p *Proxy) fromBroker(c *pipe) {
	const (
		headSize = 7 // type, channel, size
		endSize  = 1
		method   = 1 // a type
	)
	head := make([]byte, headSize)
	for {
		if _, err := io.ReadFull(c.broker, head); err != nil {
			break
		}
		frame := make([]byte, headSize+int(binary.BigEndian.Uint32(head[3:]))+endSize)
		copy(frame, head)
		if _, err := io.ReadFull(c.broker, frame[headSize:]); err != nil {
			break
		}
		var word Word
		if frame[0] == method {
			word = Word(binary.BigEndian.Uint32(frame[headSize:]))
		}
		if !p.audible(c, word) {
			break
		}
		if _, err := c.client.Write(frame); err != nil {
			break
		}
		if word != 0 {
			select {
			case p.words[word] <- struct{}{}:
			default: // another method, or too many
			}
		}
	}
	c.cut()
	<-c.gone
}

// audible waits until the broker's frame, with this method if with any, may pass. It returns false
// if the connection was cut before.
func (p *Proxy) audible(c *pipe, w Word) bool {
	p.mu.Lock()
	if w != 0 && w == p.muteAt && p.muted == nil {
		p.muted = make(chan struct{})
	}
	muted := p.muted
	p.mu.Unlock()
	if muted != nil {
		select {
		case <-muted:
		case <-c.severed:
		}
	}
	select {
	case <-c.severed:
		return false
	default:
		return true
	}
}

// pipe is one connection through the proxy.
type pipe struct {
	client, broker net.Conn

	cutOnce, closeOnce sync.Once
	severed            chan struct{} // closed by cut
	gone               chan struct{} // closed by close
}

// cut closes the broker's side and half-closes the client's, so the client can still read the
// forwarded frames. An immediate close would reset the connection and discard the frames.
func (c *pipe) cut() {
	c.cutOnce.Do(func() {
		close(c.severed)
		_ = c.broker.Close()
		if half, ok := c.client.(interface{ CloseWrite() error }); ok {
			_ = half.CloseWrite()
		}
	})
}

func (c *pipe) close() {
	c.cut()
	c.closeOnce.Do(func() {
		close(c.gone)
		_ = c.client.Close()
	})
}
