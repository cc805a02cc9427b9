package transport

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

// peer is the broker's end of a real AMQP connection, with the minimum of functions for the
// protocol library: handshake, channels, confirms. The fields headers and start hold
// received content headers and start-ok arguments for the test.
type peer struct {
	conn    net.Conn
	offers  string        // the SASL mechanisms; "": PLAIN
	mute    []method      // methods without a response
	hangUp  []method      // methods at which peer closes the connection without an exception
	headers chan []byte   // the content header of every publish, without its first 14 bytes
	frames  []byte        // written after every consume-ok
	ended   chan struct{} // closed when the connection ends
	start   []byte        // the arguments of connection.start-ok
	tags    map[uint16]uint64

	frameMax uint32             // the size of frames in connection.tune; 0: 128 KiB
	anySize  bool               // connection.tune has no size of frames
	seen     func(frame []byte) // called with the frames of channels; then peer confirms nothing
}

// method is a class id and a method id of AMQP 0-9-1.
type method struct{ class, id uint16 }

// servePeer starts p on conn; p answers until the connection ends.
func servePeer(conn net.Conn, p *peer) *peer {
	p.conn, p.tags = conn, map[uint16]uint64{}
	p.headers, p.ended = make(chan []byte, 1024), make(chan struct{})
	go func() {
		defer close(p.ended)
		defer conn.Close() //nolint:errcheck // only to free it.
		if _, err := io.ReadFull(conn, make([]byte, 8)); err != nil {
			return
		}
		offers := cmp.Or(p.offers, "PLAIN")
		p.send(0, method{10, 10}, "\x00\x09\x00\x00\x00\x00\x00\x00\x00"+string(rune(len(offers)))+offers+"\x00\x00\x00\x05en_US")
		for p.frame() {
		}
	}()
	return p
}

// send writes a method frame.
func (p *peer) send(channel uint16, m method, args string) {
	var b bytes.Buffer
	b.WriteByte(1)
	_ = binary.Write(&b, binary.BigEndian, channel)
	_ = binary.Write(&b, binary.BigEndian, uint32(len(args)+4))
	_ = binary.Write(&b, binary.BigEndian, m)
	b.WriteString(args)
	b.WriteByte(0xCE)
	_, _ = p.conn.Write(b.Bytes())
}

// frame reads and answers one frame, or reports false to end the connection.
func (p *peer) frame() bool {
	head := make([]byte, 7)
	if _, err := io.ReadFull(p.conn, head); err != nil {
		return false
	}
	body := make([]byte, binary.BigEndian.Uint32(head[3:])+1)
	if _, err := io.ReadFull(p.conn, body); err != nil {
		return false
	}
	channel, payload := binary.BigEndian.Uint16(head[1:]), body[:len(body)-1]
	if p.seen != nil && channel > 0 {
		p.seen(slices.Concat(head, body))
		if head[0] != frameMethod {
			return true
		}
	}
	switch head[0] {
	case 1:
		m := method{binary.BigEndian.Uint16(payload), binary.BigEndian.Uint16(payload[2:])}
		if m == (method{10, 11}) { // start-ok
			p.start = payload[4:]
		}
		if slices.Contains(p.hangUp, m) {
			return false
		}
		if !slices.Contains(p.mute, m) {
			p.answer(channel, m, payload[4:])
		}
	case 2:
		p.headers <- payload[14:]
		if binary.BigEndian.Uint64(payload[4:]) == 0 {
			p.confirm(channel)
		}
	case 3:
		p.confirm(channel)
	}
	return true
}

// confirm acknowledges the next publish of the channel.
func (p *peer) confirm(channel uint16) {
	p.tags[channel]++
	p.send(channel, method{60, 80}, string(binary.BigEndian.AppendUint64(nil, p.tags[channel]))+"\x00")
}

func (p *peer) answer(channel uint16, m method, args []byte) {
	switch m {
	case method{10, 11}: // start-ok
		frameMax := p.frameMax
		if frameMax == 0 && !p.anySize {
			frameMax = 128 << 10
		}
		p.send(0, method{10, 30}, "\x00\x00"+string(binary.BigEndian.AppendUint32(nil, frameMax))+"\x00\x00") // tune: no heartbeat
	case method{10, 40}: // open
		p.send(0, method{10, 41}, "\x00")
	case method{10, 50}: // close
		p.send(0, method{10, 51}, "")
	case method{10, 70}: // update-secret
		p.send(0, method{10, 71}, "")
	case method{20, 10}: // channel.open
		p.send(channel, method{20, 11}, "\x00\x00\x00\x00")
	case method{20, 40}: // channel.close
		p.send(channel, method{20, 41}, "")
	case method{85, 10}: // confirm.select
		p.send(channel, method{85, 11}, "")
	case method{60, 10}: // qos
		p.send(channel, method{60, 11}, "")
	case method{60, 20}: // consume
		tag := args[3+int(args[2]):]
		p.send(channel, method{60, 21}, string(tag[:1+int(tag[0])]))
		_, _ = p.conn.Write(p.frames)
	case method{60, 30}: // cancel
		p.send(channel, method{60, 31}, string(args[:1+int(args[0])]))
	}
}

// openLink opens a connection to p, without a network. The test ends the connection.
func openLink(t testing.TB, p *peer, config amqp.Config) (l *netLink, far net.Conn) {
	t.Helper()
	near, far := net.Pipe()
	return openLinkOn(t, near, far, p, ContentLimits{}, config), far
}

// tcpPair returns the ends of a connection with buffers.
func tcpPair(t testing.TB) (near, far net.Conn) {
	t.Helper()
	listener, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close() //nolint:errcheck // only to free it.
	if near, err = new(net.Dialer).DialContext(t.Context(), "tcp", listener.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if far, err = listener.Accept(); err != nil {
		t.Fatal(err)
	}
	return near, far
}

// openLinkOn is openLink on a connection.
func openLinkOn(t testing.TB, near, far net.Conn, p *peer, limits ContentLimits, config amqp.Config) *netLink {
	t.Helper()
	servePeer(far, p)
	s := newSocket(near, time.Minute)
	s.frames = newFrameReader(near, limits)
	config.SASL = []amqp.Authentication{&amqp.PlainAuth{}}
	conn, err := amqp.Open(s, config)
	if err != nil {
		t.Fatal(err)
	}
	l := &netLink{
		conn: conn, socket: s,
		ended:  conn.NotifyClose(make(chan *amqp.Error, 1)),
		blocks: conn.NotifyBlocked(make(chan amqp.Blocking, 16)),
	}
	t.Cleanup(func() {
		l.Cut()
		<-p.ended
		_ = conn.Close()
	})
	return l
}

// openOwn opens a channel of l.
func openOwn(t testing.TB, l *netLink) *netChannel {
	t.Helper()
	ch, err := l.Channel()
	if err != nil {
		t.Fatal(err)
	}
	own, ok := ch.(*netChannel)
	if !ok {
		t.Fatalf("a channel of type %T", ch)
	}
	return own
}

// writtenFrames records the frames of messages and acknowledgements that a peer reads, and
// whether another frame came between the frames of a message.
type writtenFrames struct {
	mu      sync.Mutex
	stream  []byte
	methods []method
	left    map[uint16]int64 // bytes of a body still to come; -1: the content header
	broken  string
}

// seen is a peer's seen.
func (w *writtenFrames) seen(frame []byte) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.left == nil {
		w.left = make(map[uint16]int64)
	}
	channel, payload := binary.BigEndian.Uint16(frame[1:]), frame[frameHeaderBytes:len(frame)-1]
	left, open := w.left[channel]
	switch {
	case frame[0] == frameMethod && !open:
		m := method{binary.BigEndian.Uint16(payload), binary.BigEndian.Uint16(payload[2:])}
		w.methods = append(w.methods, m)
		switch m {
		case method{60, 40}:
			w.left[channel] = -1
		case method{60, 80}, method{60, 120}:
		default:
			return
		}
	case frame[0] == frameContent && open && left < 0:
		w.left[channel] = int64(binary.BigEndian.Uint64(payload[4:]))
	case frame[0] == frameBody && open && left >= int64(len(payload)):
		w.left[channel] -= int64(len(payload))
	default:
		w.broken = fmt.Sprintf("frame %q while %d bytes are left of a message: %v", frame[:min(len(frame), 20)], left, open)
	}
	if w.left[channel] == 0 {
		delete(w.left, channel)
	}
	w.stream = append(w.stream, frame...)
}

// take returns the stream since the last take.
func (w *writtenFrames) take(t *testing.T) []byte {
	t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.broken != "" {
		t.Error(w.broken)
	}
	stream := w.stream
	w.stream = nil
	return stream
}
