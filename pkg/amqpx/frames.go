package amqpx

import (
	"bufio"
	"encoding/binary"
	"io"
	"slices"
)

// frameReader reads AMQP frames for amqp091-go and replaces header tables that it
// could not read. That library ends the connection on a table of more than 8192
// entries or nested deeper than 32, and RabbitMQ lets both through: the broker would
// deliver the message again, and one message would keep every server, or a client,
// from ever being ready. Instead it arrives with headerUnreadable set and is refused.
//
// Only content headers are looked at; everything else passes as it is.
type frameReader struct {
	r    *bufio.Reader
	out  []byte // whole frames to hand on before reading further
	pass int    // bytes of the current frame to hand on unseen
	raw  bool   // the stream is not made of frames: hand on everything
}

// AMQP 0-9-1 section 2.3.5 and 4.2.3.
const (
	frameHeaderBytes = 7 // type, channel, size
	frameTypes       = 8 // method, header, body, heartbeat are 1, 2, 3, 8
	frameContent     = 2
	// frameMost bounds what is held of one frame; a larger one passes unseen, for the
	// library to refuse: it negotiates at most 128 KiB.
	frameMost = 1 << 20
	readAhead = 64 << 10
)

func newFrameReader(r io.Reader) *frameReader {
	return &frameReader{r: bufio.NewReaderSize(r, readAhead)}
}

// Read implements io.Reader. It fills p with what has arrived and blocks only for
// the first byte.
func (f *frameReader) Read(p []byte) (total int, err error) {
	for total < len(p) && err == nil {
		if total > 0 && !f.ready() {
			break
		}
		var n int
		switch rest := p[total:]; {
		case len(f.out) > 0:
			n = copy(rest, f.out)
			f.out = f.out[n:]
		case f.raw:
			n, err = f.r.Read(rest)
		case f.pass > 0:
			n, err = f.r.Read(rest[:min(len(rest), f.pass)])
			f.pass -= n
		default:
			err = f.next()
		}
		total += n
	}
	if total > 0 {
		err = nil // it comes again
	}
	return total, err
}

// ready reports whether more can be handed on without waiting for the network.
func (f *frameReader) ready() bool {
	if len(f.out) > 0 {
		return true
	}
	buffered := f.r.Buffered()
	if f.raw || f.pass > 0 {
		return buffered > 0
	}
	if buffered < frameHeaderBytes {
		return false
	}
	head, err := f.r.Peek(frameHeaderBytes)
	if err != nil || head[0] != frameContent {
		return err == nil
	}
	return buffered >= frameHeaderBytes+int(binary.BigEndian.Uint32(head[3:]))+1
}

// next takes up the next frame: a content header whole, any other to be passed.
func (f *frameReader) next() error {
	first, err := f.r.Peek(1)
	if err != nil {
		return err
	}
	if first[0] == 0 || first[0] > frameTypes {
		f.raw = true // "AMQP…", a broker of another version, or no broker at all
		return nil
	}
	head, err := f.r.Peek(frameHeaderBytes)
	if err != nil {
		f.raw = true // cut off in the middle: the library says so
		return nil   //nolint:nilerr // the reader returns the error again, after the bytes before it.
	}
	size := binary.BigEndian.Uint32(head[3:])
	if head[0] != frameContent || size > frameMost {
		f.pass = frameHeaderBytes + int(size) + 1
		return nil
	}
	frame := make([]byte, frameHeaderBytes+int(size)+1)
	if _, err := io.ReadFull(f.r, frame); err != nil {
		return err
	}
	f.out = withReadableTable(frame)
	return nil
}

// withReadableTable returns a content header frame as it is, or with its table
// replaced when the library could not read it. The properties that precede the
// table are content-type and content-encoding (section 4.2.6.1, basic class).
func withReadableTable(frame []byte) []byte {
	const (
		flagsAt         = frameHeaderBytes + 12 // after class, weight and body size
		contentType     = 1 << 15
		contentEncoding = 1 << 14
		headers         = 1 << 13
	)
	payload := frame[:len(frame)-1]
	if len(payload) < flagsAt+2 {
		return frame
	}
	flags := binary.BigEndian.Uint16(payload[flagsAt:])
	at := flagsAt + 2
	for _, property := range []uint16{contentType, contentEncoding} {
		if flags&property != 0 && at < len(payload) {
			at += 1 + int(payload[at])
		}
	}
	if flags&headers == 0 || at+4 > len(payload) {
		return frame
	}
	end := at + 4 + int(binary.BigEndian.Uint32(payload[at:]))
	if end > len(payload) || readableTable(payload[at+4:end]) {
		return frame
	}
	mark := append([]byte{byte(len(headerUnreadable))}, headerUnreadable...)
	mark = append(mark, 't', 1)
	replaced := slices.Concat(frame[:at], binary.BigEndian.AppendUint32(nil, uint32(len(mark))), mark, frame[end:]) //nolint:gosec // a few bytes.
	binary.BigEndian.PutUint32(replaced[3:], uint32(len(replaced)-frameHeaderBytes-1))                              //nolint:gosec // at most frameMost.
	return replaced
}
