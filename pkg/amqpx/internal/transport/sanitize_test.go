package transport

import (
	"bytes"
	"encoding/binary"
	"io"
	"testing"
	"testing/iotest"

	"rabbitmq-rpc/pkg/amqpx/internal/wire"
)

// frameOf returns a frame on channel 1.
func frameOf(kind byte, payload []byte) []byte {
	f := binary.BigEndian.AppendUint32([]byte{kind, 0, 1}, uint32(len(payload)))
	return append(append(f, payload...), 0xCE)
}

// longBytes encodes a long string or the content of a table.
func longBytes(b []byte) []byte {
	return append(binary.BigEndian.AppendUint32(nil, uint32(len(b))), b...)
}

// contentHeader returns a content header with content-type and content-encoding before the
// table and correlation-id after the table.
func contentHeader(table []byte) []byte {
	payload := append([]byte{0, 60, 0, 0}, make([]byte, 8)...)
	payload = binary.BigEndian.AppendUint16(payload, 1<<15|1<<14|1<<13|1<<10)
	payload = append(payload, "\x02ct\x02ce"...)
	payload = append(payload, longBytes(table)...)
	payload = append(payload, "\x02id"...)
	return frameOf(frameContent, payload)
}

// deepTable returns tables and arrays, nested alternately.
func deepTable(depth int) []byte {
	var inner []byte
	for i := range depth {
		switch {
		case i == 0:
			inner = []byte("\x01kV")
		case (depth-i)%2 == 0:
			inner = append([]byte("F"), longBytes(inner)...)
		default:
			inner = append([]byte("\x01kA"), longBytes(inner)...)
		}
	}
	return inner
}

func wideTable(entries int) []byte { return bytes.Repeat([]byte("\x01kV"), entries) }

func TestFramesPassUnchanged(t *testing.T) {
	t.Parallel()
	everyType := []byte("\x01kt\x01\x01kb\x01\x01kB\x01\x01ks12\x01ku12\x01kI1234\x01ki1234\x01kf1234\x01kD12345" +
		"\x01kl12345678\x01kd12345678\x01kT12345678\x01kS\x00\x00\x00\x01x\x01kx\x00\x00\x00\x00\x01kV")
	stream := bytes.Join([][]byte{
		frameOf(1, []byte("a method")), contentHeader(everyType), frameOf(3, bytes.Repeat([]byte("b"), 200_000)),
		frameOf(8, nil), contentHeader(wideTable(wire.ReadableEntries)), contentHeader(nil), frameOf(2, []byte("short")),
	}, nil)
	for name, r := range map[string]io.Reader{
		"whole": bytes.NewReader(stream), "byte by byte": iotest.OneByteReader(bytes.NewReader(stream)),
		"halves": iotest.HalfReader(bytes.NewReader(stream)), "error with data": iotest.DataErrReader(bytes.NewReader(stream)),
	} {
		got, err := io.ReadAll(newFrameReader(r, ContentLimits{}))
		if err != nil || !bytes.Equal(got, stream) {
			t.Errorf("%s: %d of %d bytes, %v", name, len(got), len(stream), err)
		}
	}
}

func TestWhatIsNoFramePassesUnchanged(t *testing.T) {
	t.Parallel()
	for _, stream := range []string{"", "AMQP\x00\x00\x09\x01", "HTTP/1.1 400 Bad Request\r\n\r\n", "\x01", "\x02\x00\x01\x00"} {
		got, err := io.ReadAll(newFrameReader(iotest.OneByteReader(bytes.NewReader([]byte(stream))), ContentLimits{}))
		if err != nil || string(got) != stream {
			t.Errorf("%q became %q, %v", stream, got, err)
		}
	}
	if _, err := io.ReadAll(newFrameReader(bytes.NewReader(contentHeader(nil)[:20]), ContentLimits{})); err == nil {
		t.Error("a frame that was cut off is no error")
	}
}

func TestUnreadableTablesAreReplaced(t *testing.T) {
	t.Parallel()
	mark := append([]byte{byte(len(wire.HeaderUnreadable))}, wire.HeaderUnreadable+"t\x01"...)
	for name, table := range map[string][]byte{
		"too deep": deepTable(wire.ReadableDepth + 2), "far too deep": deepTable(3000), "too wide": wideTable(wire.ReadableEntries + 1),
		"type of no AMQP": []byte("\x01k?"), "cut off": []byte("\x01kS\x00\x00\x00\x09x"), "no value": []byte("\x01k"), "name too long": []byte("\x09k"),
	} {
		after := frameOf(3, []byte("body"))
		got, err := io.ReadAll(newFrameReader(bytes.NewReader(append(contentHeader(table), after...)), ContentLimits{}))
		if want := append(contentHeader(mark), after...); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: became %q, %v", name, got[:min(len(got), 100)], err)
		}
	}
	if !readableTable(deepTable(wire.ReadableDepth + 1)) {
		t.Error("a table of the greatest depth is refused")
	}
}

// An incomplete header frame must not delay the frames before it.
func TestFramesAreHandedOnAsTheyArrive(t *testing.T) {
	t.Parallel()
	r, w := io.Pipe()
	defer func() { _ = r.Close() }()
	first := frameOf(1, []byte("first"))
	go func() { _, _ = w.Write(append(first, contentHeader(nil)[:10]...)) }()
	p := make([]byte, 4096)
	n, err := newFrameReader(r, ContentLimits{}).Read(p)
	if err != nil || !bytes.Equal(p[:n], first) {
		t.Errorf("read %q, %v", p[:n], err)
	}
}

func FuzzFrames(f *testing.F) {
	f.Add(contentHeader(deepTable(40)))
	f.Add(contentHeader(wideTable(3)))
	f.Add([]byte("AMQP\x00\x00\x09\x01"))
	f.Fuzz(func(t *testing.T, stream []byte) {
		whole, _ := io.ReadAll(newFrameReader(bytes.NewReader(stream), ContentLimits{}))
		again, err := io.ReadAll(newFrameReader(bytes.NewReader(whole), ContentLimits{}))
		pieces, _ := io.ReadAll(newFrameReader(iotest.OneByteReader(bytes.NewReader(stream)), ContentLimits{}))
		if !bytes.Equal(whole, pieces) {
			t.Errorf("read at once %q, in pieces %q", whole, pieces)
		}
		if err == nil && !bytes.Equal(whole, again) {
			t.Errorf("%q is replaced again by %q", whole, again)
		}
	})
}
