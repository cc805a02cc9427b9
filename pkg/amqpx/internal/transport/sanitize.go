package transport

import (
	"bufio"
	"encoding/binary"
	"io"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"rabbitmq-rpc/pkg/amqpx/internal/wire"
)

// frameReader reads AMQP frames, for amqp091-go and for the channels of this package, and
// replaces header tables that the library cannot read. The library ends the connection on a
// table of more than 8192 entries or nested deeper than 32. RabbitMQ accepts both, and would
// redeliver the message: a single message would keep every server, or a client, from ever being
// ready. Instead the message arrives with [wire.HeaderUnreadable] set and is refused. Tables of
// taken deliveries have the same bounds, because the application may send them on.
//
// frameReader also bounds the bodies that are read, see ContentLimits: the content header
// tells a body's size before the body arrives. A body beyond the bounds is discarded while
// being read, and its message arrives with an empty body and [wire.HeaderDropped] set.
//
// frameReader takes the deliveries and the confirms of the open channels, see intake. It
// inspects content headers and methods; frames of amqp091-go pass unchanged.
type frameReader struct {
	bodyLimits             // of the channels without a lease
	leased     atomic.Bool // there may be channels with a lease

	r       *bufio.Reader
	out     []byte // whole frames to return before reading further
	pass    int    // bytes of the current frame to return unchanged
	discard int    // bytes of the current frame to discard
	raw     bool   // the stream has no frames: return all bytes unchanged
	failed  error  // ended reading

	header []byte // the buffer of the last content header, for reuse
	// dropping maps a channel whose current body is discarded to the number of bytes still to
	// come.
	dropping map[uint16]uint64
	// kinds has the channels whose next content is not ContentRequest.
	kinds map[uint16]ContentKind

	peer peerStart

	channels openChannels
	intake   intake
}

// peerStart records how a connection began and, if it ended before AMQP was established, why.
type peerStart struct {
	methods atomic.Int32           // arrived methods, up to methodsOfHandshake
	alien   atomic.Pointer[string] // the first bytes from the peer, if not AMQP frames
	ended   chan struct{}          // closed when reading failed
	once    sync.Once
	cause   error // the reason, set before ended is closed
}

const (
	// methodsOfHandshake are connection.start, tune and open-ok.
	methodsOfHandshake = 3
	// alienBytes bounds the stored bytes of a peer that does not speak AMQP.
	alienBytes = 8
	// reasonWait bounds the time for which a failed write waits until the reader knows the
	// reason, if the peer has sent no method yet: the TLS alert of a broker that refuses a
	// certificate arrives while the connection breaks.
	reasonWait = 200 * time.Millisecond
)

// handshake returns the number of arrived methods, up to methodsOfHandshake, the first bytes
// from the peer if not AMQP frames, and the error that ended reading, if any.
func (f *frameReader) handshake() (methods int32, alien string, ended error) {
	if text := f.peer.alien.Load(); text != nil {
		alien = *text
	}
	select {
	case <-f.peer.ended:
		ended = f.peer.cause
	default:
	}
	return f.peer.methods.Load(), alien, ended
}

// awaitReason waits up to reasonWait until the reader knows why the connection ended. It
// returns at once if a method has arrived.
func (f *frameReader) awaitReason() {
	if f.peer.methods.Load() > 0 {
		return
	}
	limit := time.NewTimer(reasonWait)
	defer limit.Stop()
	select {
	case <-f.peer.ended:
	case <-limit.C:
	}
}

// AMQP 0-9-1 section 2.3.5 and 4.2.3.
const (
	frameHeaderBytes = 7 // type, channel, size
	frameTypes       = 8 // method, header, body, heartbeat are 1, 2, 3, 8
	frameMethod      = 1
	frameContent     = 2
	frameBody        = 3
	// maxFrame bounds the memory for a frame. A larger frame passes unchanged, and the library
	// refuses it: it negotiates at most 128 KiB.
	maxFrame  = 1 << 20
	readAhead = 64 << 10
)

func newFrameReader(r io.Reader, limits ContentLimits) *frameReader {
	return &frameReader{r: bufio.NewReaderSize(r, readAhead), bodyLimits: bodyLimits{limits: limits}, peer: peerStart{ended: make(chan struct{})}}
}

// Read implements io.Reader. It fills p with the bytes that have arrived and blocks only for
// the first byte.
func (f *frameReader) Read(p []byte) (total int, err error) {
	for total < len(p) && f.failed == nil {
		if total > 0 && (f.intake.yield || !f.ready()) {
			f.intake.yield = false
			break
		}
		n := 0
		switch rest := p[total:]; {
		case len(f.out) > 0:
			n = copy(rest, f.out)
			f.out = f.out[n:]
		case f.raw:
			n, err = f.r.Read(rest)
		case f.pass > 0:
			n, err = f.r.Read(rest[:min(len(rest), f.pass)])
			f.pass -= n
		case f.discard > 0:
			n, err = f.r.Discard(min(f.discard, max(f.r.Buffered(), 1)))
			f.discard -= n
			n = 0
		case f.intake.body != nil:
			err = f.readBody()
		default:
			err = f.next(total == 0)
		}
		total += n
		f.failed = err
	}
	if total > 0 {
		f.intake.passedAt = time.Now()
		return total, nil // the next call returns the error
	}
	if f.failed != nil {
		f.peer.once.Do(func() {
			f.peer.cause = f.failed
			close(f.peer.ended)
		})
	}
	return 0, f.failed
}

// ready reports whether Read can return more bytes without waiting for the network.
func (f *frameReader) ready() bool {
	if len(f.out) > 0 {
		return true
	}
	buffered := f.r.Buffered()
	if f.raw || f.pass > 0 || f.discard > 0 || f.intake.body != nil {
		return buffered > 0
	}
	if buffered < frameHeaderBytes {
		return false
	}
	head, err := f.r.Peek(frameHeaderBytes)
	if err != nil {
		return false
	}
	channel, size := binary.BigEndian.Uint16(head[1:]), int(binary.BigEndian.Uint32(head[3:]))
	switch head[0] {
	case frameMethod:
		return buffered >= f.methodPrefix(channel, size) && (size > maxTakenMethod || buffered >= frameOverhead+size)
	case frameContent:
		return buffered >= frameHeaderBytes+size+1
	default:
		return true
	}
}

// next starts the next frame. It takes the frame, or reads a content header whole; any other
// frame will pass. first reports whether amqp091-go has handled all frames before.
func (f *frameReader) next(first bool) error {
	start, err := f.r.Peek(1)
	if err != nil {
		return err
	}
	if start[0] == 0 || start[0] > frameTypes {
		f.raw = true // "AMQP…" of a broker with another version, or no broker at all
		if start, err := f.r.Peek(min(alienBytes, f.r.Buffered())); err == nil {
			text := string(start)
			f.peer.alien.Store(&text)
		}
		return nil
	}
	head, err := f.r.Peek(frameHeaderBytes)
	if err != nil {
		f.raw = true // a truncated frame: the library reports the error
		return nil   //nolint:nilerr // the reader returns the error again, after the bytes before it.
	}
	kind, channel, size := head[0], binary.BigEndian.Uint16(head[1:]), binary.BigEndian.Uint32(head[3:])
	if len(f.dropping) > 0 && f.dropped(kind, channel, size) {
		return nil
	}
	if kind == frameMethod {
		if n := f.peer.methods.Load(); n < methodsOfHandshake {
			f.peer.methods.Store(n + 1)
		}
		if err := f.noteMethod(channel, int(size)); err != nil {
			return err
		}
		if taken, err := f.takeMethod(channel, int(size), first); taken || err != nil {
			return err
		}
	}
	if a := f.intake.assembling[channel]; a != nil && kind == frameBody {
		return f.beginBody(a, int(size))
	}
	if kind != frameContent || size > maxFrame {
		f.pass = frameHeaderBytes + int(size) + 1
		return nil
	}
	frame := slices.Grow(f.header[:0], frameHeaderBytes+int(size)+1)[:frameHeaderBytes+int(size)+1]
	if len(frame) <= readAhead {
		f.header = frame
	}
	if _, err := io.ReadFull(f.r, frame); err != nil {
		return err
	}
	frame = f.bounded(channel, withReadableTable(frame))
	if a := f.intake.assembling[channel]; a != nil {
		return f.takeHeader(a, frame)
	}
	f.out = frame
	return nil
}

// tableOf returns the position of the table's length field in a content header frame, or where
// the field would be, and the begin and the end of the table's content. Only the properties
// content-type and content-encoding come before the table (section 4.2.6.1, basic class). ok
// is false if the frame is malformed.
func tableOf(frame []byte) (lengthAt, begin, end int, ok bool) {
	payload := frame[:len(frame)-1]
	if len(payload) < flagsAt+2 {
		return 0, 0, 0, false
	}
	flags := binary.BigEndian.Uint16(payload[flagsAt:])
	at := flagsAt + 2
	for _, property := range []uint16{flagContentType, flagContentEncoding} {
		if flags&property != 0 && at < len(payload) {
			at += 1 + int(payload[at])
		}
	}
	if at > len(payload) {
		return 0, 0, 0, false
	}
	if flags&flagHeaders == 0 {
		return at, at, at, true
	}
	if at+4 > len(payload) {
		return 0, 0, 0, false
	}
	end = at + 4 + int(binary.BigEndian.Uint32(payload[at:]))
	return at, at + 4, end, end <= len(payload)
}

// Positions in a content header frame (the property flags follow class, weight and body size),
// and the flags of the properties up to the table.
const (
	bodySizeAt          = frameHeaderBytes + 4
	flagsAt             = frameHeaderBytes + 12
	flagContentType     = 1 << 15
	flagContentEncoding = 1 << 14
	flagHeaders         = 1 << 13
)

// withReadableTable returns a content header frame unchanged if the library can read its
// table, else with a replaced table.
func withReadableTable(frame []byte) []byte {
	lengthAt, begin, end, ok := tableOf(frame)
	if !ok || readableTable(frame[begin:end]) {
		return frame
	}
	return withTable(frame, lengthAt, end, unreadableMark())
}

// unreadableMark returns the entry that marks a replaced table.
func unreadableMark() []byte {
	return append(appendShortString(nil, wire.HeaderUnreadable), 't', 1)
}

// withTable returns a copy of a content header frame with another table.
func withTable(frame []byte, lengthAt, end int, table []byte) []byte {
	replaced := slices.Concat(frame[:lengthAt], binary.BigEndian.AppendUint32(nil, uint32(len(table))), table, frame[end:]) //nolint:gosec // at most maxFrame.
	flags := binary.BigEndian.Uint16(replaced[flagsAt:]) | flagHeaders
	binary.BigEndian.PutUint16(replaced[flagsAt:], flags)
	binary.BigEndian.PutUint32(replaced[3:], uint32(len(replaced)-frameHeaderBytes-1)) //nolint:gosec // at most maxFrame.
	return replaced
}

func appendShortString(b []byte, text string) []byte {
	return append(append(b, byte(len(text))), text...) //nolint:gosec // at most 255 bytes.
}

// readableTable reports whether amqp091-go can read a field table (AMQP 0-9-1
// section 4.2.5.5, with RabbitMQ's types,
// https://www.rabbitmq.com/docs/amqp-0-9-1-errata#section_3).
func readableTable(b []byte) bool { return readableFields(b, 0, true) }

// readableFields checks the fields of a table, or the values of an array.
func readableFields(b []byte, depth int, named bool) bool {
	if depth > wire.ReadableDepth {
		return false
	}
	for entries := 0; len(b) > 0; entries++ {
		if entries >= wire.ReadableEntries {
			return false
		}
		if named {
			if b = b[min(1+int(b[0]), len(b)):]; len(b) == 0 {
				return false
			}
		}
		size, container := fieldSize(b)
		if size < 0 || size > len(b)-1 {
			return false
		}
		if container && !readableFields(b[5:1+size], depth+1, b[0] == 'F') {
			return false
		}
		b = b[1+size:]
	}
	return true
}

// fieldSize returns the number of bytes after a field's type octet, or -1 if unknown, and
// whether the field is a table or an array.
func fieldSize(b []byte) (size int, container bool) {
	switch b[0] {
	case 'V':
		return 0, false
	case 't', 'b', 'B':
		return 1, false
	case 's', 'u':
		return 2, false
	case 'I', 'i', 'f':
		return 4, false
	case 'D':
		return 5, false
	case 'l', 'd', 'T':
		return 8, false
	case 'S', 'x', 'A', 'F':
		if len(b) < 5 {
			return -1, false
		}
		return 4 + int(binary.BigEndian.Uint32(b[1:])), b[0] == 'A' || b[0] == 'F'
	default:
		return -1, false
	}
}
