package transport

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"reflect"
	"slices"
	"testing"
	"testing/iotest"

	amqp "github.com/rabbitmq/amqp091-go"

	"rabbitmq-rpc/pkg/amqpx/internal/wire"
)

// intakeOf returns a frame reader with open channels 1 and 2, each with a consumer "t", a
// consumer of the retry queue, and 4 messages that wait for their confirms.
func intakeOf(r io.Reader, limits ContentLimits) (f *frameReader, channels []*netChannel) {
	f = newFrameReader(r, limits)
	for id := range uint16(2) {
		ch := &netChannel{
			id: id + 1, over: make(chan struct{}), consumers: make(map[string]*deliveryQueue),
			conn: &netLink{socket: &socket{frames: f}},
		}
		for _, tag := range []string{"t", "t" + RetryTagSuffix} {
			ch.setConsumer(tag, newDeliveryQueue(tag, ch.over, ch.releaseUnread))
		}
		for range 4 {
			ch.confirms.add()
		}
		f.channels.add(ch)
		channels = append(channels, ch)
	}
	return f, channels
}

// intakeResult is what a frame reader made of a stream.
type intakeResult struct {
	passed     []byte // to amqp091-go, without heartbeats
	deliveries [2][]amqp.Delivery
	confirmed  [2]uint64
	held       int64
	err        error
}

// takeIn reads a stream to its end.
func takeIn(r io.Reader, limits ContentLimits) (got intakeResult) {
	if limits.InHand != nil {
		limits.InHand = &BytesInHand{Limit: limits.InHand.Limit}
	}
	f, channels := intakeOf(r, limits)
	passed, err := io.ReadAll(f)
	got.passed, got.err = bytes.ReplaceAll(passed, heartbeatFrame, nil), err
	for i, ch := range channels {
		for _, tag := range []string{"t", "t" + RetryTagSuffix} {
			q := ch.consumers[tag]
			q.end()
			for d := range q.out {
				d.Acknowledger = nil
				got.deliveries[i] = append(got.deliveries[i], d)
			}
		}
		got.confirmed[i] = ch.confirms.settled
	}
	if limits.InHand != nil {
		got.held = limits.InHand.Held.Load()
	}
	return got
}

// takeInAll reads a stream at once and byte by byte, and checks that both give the same.
func takeInAll(t *testing.T, limits ContentLimits, stream ...[]byte) intakeResult {
	t.Helper()
	whole := slices.Concat(stream...)
	got := takeIn(bytes.NewReader(whole), limits)
	for name, r := range map[string]io.Reader{
		"byte by byte": iotest.OneByteReader(bytes.NewReader(whole)), "halves": iotest.HalfReader(bytes.NewReader(whole)),
	} {
		if again := takeIn(r, limits); !reflect.DeepEqual(got, again) {
			t.Errorf("%s: %+v\nat once: %+v", name, again, got)
		}
	}
	return got
}

func bodies(deliveries []amqp.Delivery) (all []string) {
	for _, d := range deliveries {
		all = append(all, string(d.Body))
	}
	return all
}

func confirmFrame(tag byte, multiple bool) []byte {
	return appendAck(nil, 1, uint64(tag), multiple)
}

func message(t testing.TB, body string) []byte {
	t.Helper()
	return deliveryOf(t, "t", 1, 3, amqp.Publishing{Body: []byte(body)})
}

func TestFramesOfDeliveriesAreTaken(t *testing.T) {
	t.Parallel()
	deliver, header := deliverAs("t", 1, false, "", "q"), sized(6, rawHeader(0, ""))
	foo, bar := frameOf(frameBody, []byte("foo")), frameOf(frameBody, []byte("bar"))
	other := onOtherChannel
	cancel := frameOf(frameMethod, []byte("\x00\x3c\x00\x1e\x01t\x00"))
	unknown := deliveryOf(t, "unknown", 1, 3, amqp.Publishing{Body: []byte("foobar")})
	onThird := slices.Clone(message(t, "")) // no open channel
	onThird[2], onThird[len(deliver)+2] = 3, 3
	for name, c := range map[string]struct {
		stream [][]byte
		passed [][]byte
		bodies [2][]string
	}{
		"one after the other": {[][]byte{message(t, "foobar"), message(t, ""), message(t, "x")}, nil, [2][]string{{"foobar", "", "x"}}},
		"of two channels, interleaved": {
			[][]byte{deliver, other(deliver), header, other(header), other(bar), foo, other(foo), bar},
			nil,
			[2][]string{{"foobar"}, {"barfoo"}},
		},
		"with heartbeats":       {[][]byte{deliver, heartbeatFrame, header, heartbeatFrame, foo, heartbeatFrame, bar}, nil, [2][]string{{"foobar"}}},
		"with empty frames":     {[][]byte{deliver, header, frameOf(frameBody, nil), foo, frameOf(frameBody, nil), bar}, nil, [2][]string{{"foobar"}}},
		"of an unknown tag":     {[][]byte{unknown, message(t, "x")}, [][]byte{unknown}, [2][]string{{"x"}}},
		"of an unknown channel": {[][]byte{onThird, message(t, "x")}, [][]byte{onThird}, [2][]string{{"x"}}},
		"cut off by a method":   {[][]byte{deliver, header, foo, cancel, message(t, "x")}, [][]byte{cancel}, [2][]string{{"x"}}},
		"cut off at the header": {[][]byte{deliver, cancel, message(t, "x")}, [][]byte{cancel}, [2][]string{{"x"}}},
		"cut off by a delivery": {[][]byte{deliver, header, foo, message(t, "x")}, nil, [2][]string{{"x"}}},
		"cut off by a confirm":  {[][]byte{deliver, header, confirmFrame(1, false), message(t, "x")}, nil, [2][]string{{"x"}}},
		"not by other channels": {[][]byte{deliver, header, foo, other(cancel), bar}, [][]byte{other(cancel)}, [2][]string{{"foobar"}}},
		"then a body alone":     {[][]byte{message(t, "x"), foo}, [][]byte{foo}, [2][]string{{"x"}}},
		"then a header alone":   {[][]byte{message(t, "x"), header, foo}, [][]byte{header, foo}, [2][]string{{"x"}}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got := takeInAll(t, limited(1000, 1000), c.stream...)
			wantSame(t, "error", got.err, nil)
			wantSame(t, "passed", string(got.passed), string(slices.Concat(c.passed...)))
			for i, want := range c.bodies {
				if !slices.Equal(bodies(got.deliveries[i]), want) {
					t.Errorf("channel %d: %q, want %q", i+1, bodies(got.deliveries[i]), want)
				}
			}
		})
	}
}

// The bytes of a delivery that is cut off are not held any longer.
func TestCutOffDeliveriesAreNotHeld(t *testing.T) {
	t.Parallel()
	start := slices.Concat(deliverAs("t", 1, false, "", "q"), sized(500, rawHeader(0, "")), frameOf(frameBody, make([]byte, 100)))
	got := takeInAll(t, limited(1000, 1000), start, start, message(t, "x"))
	wantSame(t, "held", got.held, 1)
	retry := slices.Concat(deliverAs("t"+RetryTagSuffix, 1, false, "", "q"), sized(500, rawHeader(0, "")))
	got = takeInAll(t, limited(1000, 1000), retry, message(t, "x"))
	wantSame(t, "held after a message of the retry queue", got.held, 1)
}

func TestMalformedDeliveriesEndTheConnection(t *testing.T) {
	t.Parallel()
	deliver, header := deliverAs("t", 1, false, "", "q"), sized(6, rawHeader(0, ""))
	foo, long := frameOf(frameBody, []byte("foo")), frameOf(frameBody, []byte("foobar!"))
	endless := func(frame []byte) []byte {
		frame = slices.Clone(frame)
		frame[len(frame)-1] = 'x'
		return frame
	}
	next := bytes.Repeat(message(t, "next"), 3)
	for name, stream := range map[string][][]byte{
		"body too long":                 {deliver, header, long},
		"body too long in parts":        {deliver, header, foo, frameOf(frameBody, []byte("bar!"))},
		"body before the header":        {deliver, foo},
		"two headers":                   {deliver, header, header},
		"end of the method":             {endless(deliver)},
		"end of the header":             {deliver, endless(header)},
		"end of the body":               {deliver, header, endless(foo)},
		"end of a confirm":              {endless(confirmFrame(1, false))},
		"short confirm":                 {frameOf(frameMethod, []byte("\x00\x3c\x00\x50\x00\x00"))},
		"delivery without its key":      {frameOf(frameMethod, deliver[frameHeaderBytes:len(deliver)-3])},
		"header without its properties": {deliver, rawHeader(flagAppID, "")},
		"header without its flags":      {deliver, frameOf(frameContent, []byte("\x00\x3c\x00\x00\x00\x00\x00\x00"))},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pass := frameOf(frameMethod, []byte("\x00\x0a\x00\x3dmethod"))
			got := takeInAll(t, limited(1000, 1000), append([][]byte{message(t, "x"), pass}, append(stream, next)...)...)
			wantSame(t, "error", got.err, errFrame)
			wantSame(t, "passed", string(got.passed), string(pass))
			if !slices.Equal(bodies(got.deliveries[0]), []string{"x"}) {
				t.Errorf("deliveries %q", bodies(got.deliveries[0]))
			}
		})
	}
}

// A delivery that the stream ends within is lost, and its consumer gets no part of it.
func TestStreamThatEndsWithinADelivery(t *testing.T) {
	t.Parallel()
	whole := message(t, "foobar")
	for n := range len(whole) {
		got := takeInAll(t, limited(1000, 1000), message(t, "x"), whole[:n])
		if !slices.Equal(bodies(got.deliveries[0]), []string{"x"}) {
			t.Fatalf("after %d bytes: %q", n, bodies(got.deliveries[0]))
		}
	}
}

func TestConfirmsAreTaken(t *testing.T) {
	t.Parallel()
	got := takeInAll(t, ContentLimits{}, confirmFrame(1, false), onOtherChannel(confirmFrame(4, true)), confirmFrame(3, false), appendNack(nil, 1, 2, false, false))
	wantSame(t, "passed", len(got.passed), 0)
	wantSame(t, "confirmed", got.confirmed, [2]uint64{3, 4})
}

// A confirm after frames for amqp091-go waits until the library reads on.
func TestConfirmWaitsForTheFramesBefore(t *testing.T) {
	t.Parallel()
	returned := returnFrames(t, "m")
	f, channels := intakeOf(bytes.NewReader(slices.Concat(returned, message(t, "x"), confirmFrame(1, false), returned, confirmFrame(2, false))), ContentLimits{})
	p := make([]byte, 4096)
	for n := range uint64(2) {
		read, err := f.Read(p)
		if got := bytes.ReplaceAll(p[:read], heartbeatFrame, nil); err != nil || !bytes.Equal(got, returned) {
			t.Fatalf("read %q, %v", got, err)
		}
		wantSame(t, "confirmed", channels[0].confirms.settled, n)
	}
	if _, err := f.Read(p); !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
	wantSame(t, "confirmed", channels[0].confirms.settled, 2)
}

func TestBoundsOfTakenDeliveries(t *testing.T) {
	t.Parallel()
	got := takeInAll(t, limited(10, 25), message(t, "0123456789a"), message(t, "0123456789"), message(t, "0123456789"), message(t, "012345"),
		deliverAs("t", 1, false, "", "q"), contentHeader(wideTable(wire.ReadableEntries+1)),
		deliveryOf(t, "t"+RetryTagSuffix, 9, 5, amqp.Publishing{Body: []byte("012345")}))
	wantSame(t, "error", got.err, nil)
	wantSame(t, "passed", len(got.passed), 0)
	wantSame(t, "held", got.held, 20)
	d := got.deliveries[0]
	wantSame(t, "bodies", fmt.Sprint(bodies(d)), "[ 0123456789 0123456789   012345]")
	for i, want := range map[int]wire.DroppedBody{0: {Size: 11, Limit: 10}, 3: {Size: 6, Limit: 10, NoRoom: true}} {
		drop, ok := wire.DroppedBodyOf(d[i].Headers)
		wantSame(t, "dropped", ok, true)
		wantSame(t, "what was dropped", drop, want)
	}
	wantSame(t, "unreadable", d[4].Headers[wire.HeaderUnreadable], any(true))
}

// A header tells the size of its body before the bytes arrive. The memory follows the bytes.
func TestMemoryOfADeliveryFollowsItsBytes(t *testing.T) {
	t.Parallel()
	stream := slices.Concat(deliverAs("t", 1, false, "", "q"), sized(1<<62, rawHeader(0, "")), frameOf(frameBody, make([]byte, 100)))
	f, _ := intakeOf(bytes.NewReader(stream), ContentLimits{})
	if _, err := io.ReadAll(f); err != nil {
		t.Fatal(err)
	}
	if n := cap(f.intake.assembling[1].delivery.Body); n > maxFirstBody {
		t.Errorf("%d bytes of memory", n)
	}
}

// FuzzIntake: whatever arrives, in whatever pieces, gives the same deliveries and passes the
// same frames, and holds no more memory than the bytes that arrived.
func FuzzIntake(f *testing.F) {
	deliver := deliverAs("t", 1, false, "e", "k")
	f.Add(slices.Concat(message(f, "foobar"), confirmFrame(2, true), message(f, "")))
	f.Add(slices.Concat(deliver, sized(6, contentHeader(wideTable(3))), heartbeatFrame, onOtherChannel(message(f, "x")), frameOf(frameBody, []byte("foobar"))))
	f.Add(slices.Concat(deliver, sized(1<<40, contentHeader(deepTable(40))), frameOf(frameBody, []byte("foobar")), deliver))
	f.Add(slices.Concat(deliverAs("u", 1, false, "e", "k"), headerOf(f, messages()["everything"]), frameOf(frameBody, []byte("body"))))
	f.Add(slices.Concat(deliver, headerOf(f, messages()["everything"]), frameOf(frameBody, []byte("body")), appendNack(nil, 1, 1, false, false)))
	f.Add(slices.Concat(deliverAs("t"+RetryTagSuffix, 1, true, "", ""), sized(50, rawHeader(flagHeaders, "\x00\x00\x00\x05\x01aA\x00\x00\x00\x00"))))
	f.Fuzz(func(t *testing.T, stream []byte) {
		for _, limits := range []ContentLimits{{}, limited(100, 150)} {
			got := takeIn(bytes.NewReader(stream), limits)
			pieces := takeIn(iotest.OneByteReader(bytes.NewReader(stream)), limits)
			if !errors.Is(pieces.err, got.err) || fmt.Sprintf("%+v", got) != fmt.Sprintf("%+v", pieces) { // NaN is not equal to itself
				t.Errorf("read at once %+v\nin pieces %+v", got, pieces)
			}
			size := 0
			for _, d := range slices.Concat(got.deliveries[0], got.deliveries[1]) {
				size += len(d.Body)
			}
			if size > len(stream) {
				t.Errorf("bodies of %d bytes from %d bytes", size, len(stream))
			}
		}
	})
}
