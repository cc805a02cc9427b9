package transport

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"rabbitmq-rpc/pkg/amqpx/internal/wire"
)

// onOtherChannel returns a frame for channel 2.
func onOtherChannel(frame []byte) []byte {
	frame = slices.Clone(frame)
	binary.BigEndian.PutUint16(frame[1:], 2)
	return frame
}

// sized returns a content header with a body size.
func sized(size int, header []byte) []byte {
	header = slices.Clone(header)
	binary.BigEndian.PutUint64(header[bodySizeAt:], uint64(size))
	return header
}

// typed returns a content header with a content type and no table.
func typed(contentType string, size int) []byte {
	payload := append([]byte{0, 60, 0, 0}, make([]byte, 8)...)
	payload = binary.BigEndian.AppendUint16(payload, flagContentType|1<<10)
	payload = appendShortString(appendShortString(payload, contentType), "id")
	return sized(size, frameOf(frameContent, payload))
}

// limited returns the limits of a server.
func limited(maxBody int, inHand int64) ContentLimits {
	return ContentLimits{MaxBody: maxBody, InHand: &BytesInHand{Limit: inHand}}
}

// readFrames reads a stream twice, at once and byte by byte, and returns the frames without
// heartbeats, and the number of heartbeats.
func readFrames(t *testing.T, limits ContentLimits, stream ...[]byte) (frames [][]byte, heartbeats int) {
	t.Helper()
	whole := slices.Concat(stream...)
	read := func(r io.Reader) []byte {
		l := limits
		if l.InHand != nil {
			l.InHand = &BytesInHand{Limit: limits.InHand.Limit}
			l.InHand.Held.Store(limits.InHand.Held.Load())
		}
		got, err := io.ReadAll(newFrameReader(r, l))
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	got := read(bytes.NewReader(whole))
	if pieces := read(iotest.OneByteReader(bytes.NewReader(whole))); !bytes.Equal(got, pieces) {
		t.Errorf("read at once %q, in pieces %q", got, pieces)
	}
	for len(got) > 0 {
		n := frameHeaderBytes + int(binary.BigEndian.Uint32(got[3:])) + 1
		if got[0] == frameTypes {
			heartbeats++
		} else {
			frames = append(frames, got[:n])
		}
		got = got[n:]
	}
	return frames, heartbeats
}

// tableIn decodes the table of a content header in the same way as amqp091-go, but only the
// types in these tests: text and true.
func tableIn(t *testing.T, frame []byte) amqp.Table {
	t.Helper()
	_, begin, end, ok := tableOf(frame)
	if !ok || binary.BigEndian.Uint16(frame[flagsAt:])&flagHeaders == 0 {
		t.Fatalf("no table in %q", frame)
	}
	if !readableTable(frame[begin:end]) {
		t.Fatalf("table %q cannot be read", frame[begin:end])
	}
	table := amqp.Table{}
	for b := frame[begin:end]; len(b) > 0; {
		name := string(b[1 : 1+int(b[0])])
		b = b[1+int(b[0]):]
		size, _ := fieldSize(b)
		switch b[0] {
		case 'S':
			table[name] = string(b[5 : 1+size])
		case 't':
			table[name] = b[1] != 0
		default:
			table[name] = nil
		}
		b = b[1+size:]
	}
	return table
}

// wantDropped checks that a content header belongs to a message with a dropped body.
func wantDropped(t *testing.T, frame []byte, want wire.DroppedBody) amqp.Table {
	t.Helper()
	wantSame(t, "body size", binary.BigEndian.Uint64(frame[bodySizeAt:]), 0)
	table := tableIn(t, frame)
	got, ok := wire.DroppedBodyOf(table)
	wantSame(t, "marked", ok, true)
	wantSame(t, "what was dropped", got, want)
	if !bytes.HasSuffix(frame, []byte("\x02id\xCE")) {
		t.Errorf("the properties after the table are gone: %q", frame)
	}
	return table
}

func TestBodyBeyondTheLimitIsDropped(t *testing.T) {
	t.Parallel()
	const limit = 100_000
	big, fits := bytes.Repeat([]byte("x"), 60_000), bytes.Repeat([]byte("y"), 50_000)
	text := []byte("\x01aS\x00\x00\x00\x01b")
	other := [][]byte{ // a message within the limits, on a second channel
		onOtherChannel(frameOf(1, []byte("m"))), onOtherChannel(sized(limit, contentHeader(text))),
		onOtherChannel(frameOf(3, fits)), onOtherChannel(frameOf(3, fits)),
	}
	after := [][]byte{sized(2, contentHeader(nil)), frameOf(3, []byte("ok")), sized(0, contentHeader(nil))}
	for name, limits := range map[string]ContentLimits{"client": {MaxBody: limit}, "server": limited(limit, 1<<30)} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			frames, heartbeats := readFrames(t, limits, slices.Concat([][]byte{
				sized(2*len(big), contentHeader(text)), other[0], frameOf(3, big), other[1], other[2], frameOf(3, big), other[3],
			}, after)...)
			if len(frames) != 1+len(other)+len(after) {
				t.Fatalf("%d frames", len(frames))
			}
			table := wantDropped(t, frames[0], wire.DroppedBody{Size: 120_000, Limit: limit})
			wantSame(t, "a header of the message", table["a"], any("b"))
			for i, want := range slices.Concat(other, after) {
				if !bytes.Equal(frames[1+i], want) {
					t.Errorf("frame %d became %q", i, frames[1+i][:min(len(frames[1+i]), 100)])
				}
			}
			wantSame(t, "signs of life", heartbeats, 2)
		})
	}
}

func TestDroppedBodyThatIsCutOff(t *testing.T) {
	t.Parallel()
	for name, next := range map[string][]byte{"by a method": frameOf(1, []byte("close")), "by another message": sized(1, contentHeader(nil))} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			body := frameOf(3, []byte("z"))
			frames, _ := readFrames(t, ContentLimits{MaxBody: 10}, sized(1000, contentHeader(nil)), frameOf(3, make([]byte, 500)), next, body)
			wantDropped(t, frames[0], wire.DroppedBody{Size: 1000, Limit: 10})
			if len(frames) != 3 || !bytes.Equal(frames[1], next) || !bytes.Equal(frames[2], body) {
				t.Errorf("then %q", frames[1:])
			}
		})
	}
}

func TestMarkOfADroppedBody(t *testing.T) {
	t.Parallel()
	want := wire.DroppedBody{Size: 1000, Limit: 10}
	forged := append(appendShortString(nil, wire.HeaderDropped), "S\x00\x00\x00\x07true 9 9"[:12]...)
	for name, c := range map[string]struct {
		table []byte
		lost  bool // the table is replaced
	}{
		"no header":         {nil, false},
		"forged before":     {forged, false},
		"unreadable":        {deepTable(40), true},
		"full":              {wideTable(wire.ReadableEntries), true},
		"fills a frame":     {bytes.Repeat([]byte("\x01kV"), 1340), true},
		"nearly fills one":  {bytes.Repeat([]byte("\x01kV"), 1200), false},
		"of greatest depth": {deepTable(wire.ReadableDepth + 1), false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			frames, _ := readFrames(t, ContentLimits{MaxBody: 10}, sized(1000, contentHeader(c.table)), frameOf(3, make([]byte, 1000)))
			table := wantDropped(t, frames[0], want)
			wantSame(t, "table is lost", table[wire.HeaderUnreadable] == any(true), c.lost)
			if len(frames[0]) > max(minFrameMax, len(contentHeader(c.table))) {
				t.Errorf("a frame of %d bytes", len(frames[0]))
			}
		})
	}
	if _, ok := wire.DroppedBodyOf(amqp.Table{wire.HeaderDropped: "false 1000 10"}); ok {
		t.Error("a mark of another program counts")
	}
}

func TestBatchMayBeLargerThanARequest(t *testing.T) {
	t.Parallel()
	for contentType, passes := range map[string]bool{wire.ContentTypeRequests: true, wire.ContentTypeResponses: true, "text/plain": false} {
		frames, _ := readFrames(t, limited(1000, 1<<20), typed(contentType, 2000), frameOf(3, make([]byte, 2000)))
		wantSame(t, contentType, len(frames), map[bool]int{true: 2, false: 1}[passes])
		frames, _ = readFrames(t, limited(1000, 1<<20), typed(contentType, LargestBatch+1), frameOf(3, make([]byte, LargestBatch+1)))
		wantDropped(t, frames[0], wire.DroppedBody{Size: LargestBatch + 1, Limit: 1000})
	}
}

func TestBodiesBeyondTheBytesInHand(t *testing.T) {
	t.Parallel()
	const large = SmallBody + 1
	message := func(consumer string, size int) []byte {
		return slices.Concat(deliverFrame(consumer), sized(size, contentHeader(nil)), frameOf(3, make([]byte, size)))
	}
	returned := func(size int) []byte {
		return slices.Concat(frameOf(1, []byte("\x00\x3c\x00\x32...")), sized(size, contentHeader(nil)), frameOf(3, make([]byte, size)))
	}
	for name, c := range map[string]struct {
		held   int64 // counted before the test
		stream []byte
		limit  int // of a body; 0: the room decides
		counts int64
		passes bool
	}{
		"room":                {0, message("c", large), 0, large, true},
		"alone":               {0, message("c", 3*large), 0, 3 * large, true},
		"no room":             {large, message("c", large), 0, 0, false},
		"room for small ones": {large, message("c", 100), 0, 100, true},
		"no room for any":     {2 * large, message("c", 100), 0, 0, false},
		"empty":               {3 * large, message("c", 0), 0, 0, true},
		"retry queue":         {3 * large, message("c"+RetryTagSuffix, large), 0, 0, true},
		"returned":            {3 * large, returned(LargestBatch), 0, 0, true},
		"large returned":      {0, returned(LargestBatch + 1), LargestBatch, 0, false},
		"control":             {3 * large, message(ControlTag, 100), 0, 0, true},
		"large control":       {0, message(ControlTag, large), controlBody, 0, false},
		"then a request":      {large, append(message("c"+RetryTagSuffix, 0), message("c", large)...), 0, 0, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			limits := limited(4*large, 2*large)
			limits.InHand.Held.Store(c.held)
			f := newFrameReader(bytes.NewReader(c.stream), limits)
			got, err := io.ReadAll(f)
			if err != nil {
				t.Fatal(err)
			}
			wantSame(t, "passes unchanged", bytes.Equal(got, c.stream), c.passes)
			wantSame(t, "counted", limits.InHand.Held.Load(), c.held+c.counts)
			wantSame(t, "unclaimed", f.unclaimed.Bytes(), c.counts)
			f.unclaimed.Close(limits.InHand)
			f.unclaimed.Add(limits.InHand, 0)
			wantSame(t, "held when the connection has ended", limits.InHand.Held.Load(), c.held)
			frames, _ := readFrames(t, limits, c.stream)
			if i := slices.IndexFunc(frames, func(f []byte) bool { return f[0] == frameBody && len(f) > frameHeaderBytes+1 }); (i >= 0) != (c.passes && name != "empty") {
				t.Errorf("body at %d", i)
			}
		})
	}
}

const smallFrame = 8192

func TestTracingHeadersThatDoNotFitAreLeftOut(t *testing.T) {
	t.Parallel()
	text := func(n int) string { return strings.Repeat("x", n) }
	for name, c := range map[string]struct {
		header amqp.Table
		left   string // names of the published headers, sorted by fmt
		fits   bool
	}{
		"fits":                   {amqp.Table{"baggage": text(100), "traceparent": "p"}, "[baggage traceparent]", true},
		"baggage goes first":     {amqp.Table{"baggage": text(5000), "tracestate": text(5000), "traceparent": "p", "own": "x"}, "[own traceparent tracestate]", true},
		"then the state":         {amqp.Table{"baggage": text(10), "tracestate": text(500), "traceparent": "p", "own": text(8000)}, "[own traceparent]", true},
		"then the parent":        {amqp.Table{"traceparent": text(500), "own": text(8000)}, "[own]", true},
		"nothing is enough":      {amqp.Table{"baggage": text(5000), "traceparent": "p", "own": text(9000)}, "[baggage own traceparent]", false},
		"there are none of them": {amqp.Table{"own": text(9000)}, "[own]", false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			msg := amqp.Publishing{Headers: c.header}
			before := len(c.header)
			err := FitFrame(&msg, smallFrame)
			wantSame(t, "fits", err == nil, c.fits)
			names := make(map[string]bool, len(msg.Headers))
			for name := range msg.Headers {
				names[name] = true
			}
			got := strings.ReplaceAll(fmt.Sprint(names), ":true", "")
			wantSame(t, "headers", got, "map"+c.left)
			wantSame(t, "the request's own headers", len(c.header), before)
		})
	}
}

func TestPropertiesSizeIsExact(t *testing.T) {
	t.Parallel()
	const frame = 4096
	msg := amqp.Publishing{
		ContentType: "a", ContentEncoding: "bc", CorrelationId: "id", ReplyTo: "to", Expiration: "1", MessageId: "m", Type: "t",
		AppId: "app", DeliveryMode: 2, Priority: 1, Timestamp: time.Unix(1, 0),
		Headers: amqp.Table{
			"nil": nil, "bool": true, "int8": int8(1), "byte": byte(1), "int16": int16(1), "int32": int32(1), "int64": int64(1),
			"f32": float32(1), "f64": 1.0, "decimal": amqp.Decimal{}, "text": "text", "bytes": []byte("b"), "time": time.Unix(1, 0),
			"table": amqp.Table{"x": "y"}, "list": []any{"a", int64(1)},
		},
	}
	wantSame(t, "size", propertiesSize(&msg), 230)
	msg.Headers["fill"] = ""
	fill := strings.Repeat("x", frame-frameOverhead-propertiesSize(&msg))
	msg.Headers["fill"] = fill
	wantSame(t, "fits", CheckFrame(&msg, frame), nil)
	msg.Headers["fill"] = fill + "x"
	if CheckFrame(&msg, frame) == nil {
		t.Error("one byte too many fits")
	}
}
