package wire

import (
	"bytes"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
)

// decodedFrames returns the frames of a message.
func decodedFrames(body []byte) (all []Frame, err error) {
	err = DecodeFrames(body, func(f *Frame) bool {
		all = append(all, *f)
		return true
	})
	return all, err
}

// itemsOf returns the items of a frame.
func itemsOf(it Items) (all []string) {
	for {
		item, ok := it.Next()
		if !ok {
			return all
		}
		all = append(all, string(item))
	}
}

// itemsWith makes items.
func itemsWith(items ...string) (it Items) {
	for _, item := range items {
		it.Append([]byte(item))
	}
	return it
}

func TestFramesAreDecodedAsEncoded(t *testing.T) {
	t.Parallel()
	headers := []StreamHeader{{Name: "a", Value: "1"}, {Name: "a", Value: ""}, {Name: "b", Value: "\xff\x00", Binary: true}}
	frames := []Frame{
		{Stream: 1, Seq: 2, Items: itemsWith("one", "", strings.Repeat("x", 300)), Taken: 7, HalfClose: true, Blocked: true, Timeout: NoBudget},
		{Stream: 1 << 63, CreditItems: 1, CreditBytes: 1<<64 - 1, Accept: true, HeadersDone: true, Headers: headers, Timeout: NoBudget},
		{Stream: 3, Open: true, Timeout: 1500 * time.Millisecond, ContentType: "text/plain", ContentEncoding: "gzip"},
		{Stream: 4, Open: true, Timeout: 0},
		{Stream: 5, Timeout: NoBudget, End: &End{Items: 5, Taken: 6, Trailers: headers}},
		{Stream: 6, Timeout: NoBudget, Reset: &End{
			Failure: &Failure{
				Code: "not_found", Message: "no", Ran: RanYes, RetryAfter: time.Second,
				Details: []Detail{{"t/one", []byte{1}}, {TypeURL: "t/two"}},
			},
		}},
		{Ping: 1, Timeout: NoBudget},
		{Pong: 2, Timeout: NoBudget},
	}
	var body []byte
	for i := range frames {
		body = frames[i].AppendTo(body)
	}
	got, err := decodedFrames(body)
	if err != nil || len(got) != len(frames) {
		t.Fatalf("%d frames, error %v", len(got), err)
	}
	for i := range frames {
		want := frames[i]
		if a, b := itemsOf(got[i].Items), itemsOf(want.Items); !reflect.DeepEqual(a, b) {
			t.Errorf("frame %d: items %q, want %q", i, a, b)
		}
		wantSame(t, "count", got[i].Items.Count, want.Items.Count)
		wantSame(t, "bytes", got[i].Items.Bytes, want.Items.Bytes)
		got[i].Items, want.Items = Items{}, Items{}
		if !reflect.DeepEqual(got[i], want) {
			t.Errorf("frame %d: %+v, want %+v", i, got[i], want)
		}
	}
}

// frameOf returns a message with one frame of these fields.
func frameOf(fields ...byte) []byte {
	return protowire.AppendBytes(protowire.AppendTag(nil, fieldRecord, protowire.BytesType), fields)
}

func TestForeignFrames(t *testing.T) {
	t.Parallel()
	field := func(number protowire.Number, value []byte) []byte {
		return protowire.AppendBytes(protowire.AppendTag(nil, number, protowire.BytesType), value)
	}
	for name, c := range map[string]struct {
		body  []byte
		items []string // nil: malformed
	}{
		"other fields between items": {frameOf(0x1a, 1, 'a', 0x98, 0x06, 1, 0x1a, 1, 'b', 0x20, 1), []string{"a", "b"}},
		"a long length":              {frameOf(0x1a, 0x81, 0x80, 0x00, 'a'), []string{"a"}},
		"a field beside the frames":  {append(field(9, []byte("x")), frameOf(0x1a, 0)...), []string{""}},
		"an item beyond the frame":   {frameOf(0x1a, 2, 'a'), nil},
		"a frame beyond the message": {[]byte{0x0a, 3, 0x1a, 0}, nil},
		"a group":                    {frameOf(0x1b), nil},
		"no fields at all":           {[]byte{0}, nil},
		"too many headers":           {frameOf(bytes.Repeat(field(frameHeaders, field(streamHeaderName, []byte("n"))), maxStreamHeaders+1)...), nil},
		"too large headers":          {frameOf(field(frameHeaders, field(streamHeaderValue, make([]byte, MaxHeaderBytes)))...), nil},
		"a header without a name":    {frameOf(field(frameHeaders, nil)...), nil},
		"too many frames":            {bytes.Repeat(frameOf(0x1a, 0), maxFrames+1), nil},
	} {
		got, err := decodedFrames(c.body)
		switch {
		case c.items == nil && err == nil:
			t.Errorf("%s: no error", name)
		case c.items != nil && (err != nil || len(got) != 1 || !reflect.DeepEqual(itemsOf(got[0].Items), c.items)):
			t.Errorf("%s: %+v, error %v", name, got, err)
		}
	}
}

func TestCutItems(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		count, bytes uint64
		share        int
		want         []string
	}{
		"all":                     {9, 100, 100, []string{"aa", "bbb", "", "c"}},
		"by number":               {2, 100, 100, []string{"aa", "bbb"}},
		"the last overshoots":     {9, 3, 100, []string{"aa", "bbb"}},
		"bytes are used up":       {9, 2, 100, []string{"aa"}},
		"no credit":               {9, 0, 100, nil},
		"no items":                {0, 100, 100, nil},
		"the share":               {9, 100, 9, []string{"aa", "bbb"}},
		"one item beyond a share": {9, 100, 1, []string{"aa"}},
	} {
		it := itemsWith("aa", "bbb", "", "c")
		memory := it.Fields()
		cut := it.Cut(c.count, c.bytes, c.share)
		got := itemsOf(cut)
		if !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
		it.Rewind(memory)
		all := slices.Concat(got, itemsOf(it))
		if !reflect.DeepEqual(all, []string{"aa", "bbb", "", "c"}) {
			t.Errorf("%s: together %q", name, all)
		}
		wantSame(t, name, cut.Count+it.Count, 4)
		wantSame(t, name, cut.Bytes+it.Bytes, 6)
	}
}

// An item that was taken is not changed by items that are added to the copy.
func TestItemsOfACopyStay(t *testing.T) {
	t.Parallel()
	first := itemsWith("one", "two")
	own := first.Copy()
	one, _ := own.Next()
	for range 1000 {
		own.AppendAll(itemsWith("xxx"))
	}
	_ = append(one, '!')
	two, _ := own.Next()
	wantSame(t, "items", string(one)+string(two), "onetwo")
}

func FuzzDecodeFrames(f *testing.F) {
	f.Add((&Frame{Stream: 1, Items: itemsWith("a", ""), HalfClose: true, Open: true, Timeout: time.Second}).AppendTo(nil))
	f.Add((&Frame{Stream: 1, Accept: true, HeadersDone: true, Headers: []StreamHeader{{Name: "n", Value: "v"}}}).AppendTo(nil))
	f.Add((&Frame{Stream: 1, End: &End{Failure: &Failure{Code: "internal", Details: []Detail{{"t/one", []byte{1}}}}}}).AppendTo(nil))
	f.Add(frameOf(0x1a, 1, 'a', 0x98, 0x06, 1, 0x1a, 0x81, 0x00, 'b'))
	f.Fuzz(func(t *testing.T, body []byte) {
		before := bytes.Clone(body)
		frames, err := decodedFrames(body)
		if err != nil {
			return
		}
		if len(frames) > maxFrames {
			t.Fatalf("%d frames", len(frames))
		}
		var again []byte
		for i := range frames {
			frame := &frames[i]
			items, size := itemsOf(frame.Items), 0
			for _, item := range items {
				size += len(item)
			}
			if len(items) != frame.Items.Count || size != frame.Items.Bytes || size > 0 && frame.Items.Last > size {
				t.Fatalf("%d items of %d bytes, counted %+v", len(items), size, frame.Items)
			}
			own := *frame
			own.Items = frame.Items.Copy()
			if !reflect.DeepEqual(itemsOf(own.Items), items) {
				t.Fatal("the copy has other items")
			}
			again = own.AppendTo(again)
		}
		second, err := decodedFrames(again)
		if err != nil || len(second) != len(frames) {
			t.Fatalf("encoded again: %d frames of %d, error %v", len(second), len(frames), err)
		}
		for i := range second {
			a, b := second[i], frames[i]
			if !reflect.DeepEqual(itemsOf(a.Items), itemsOf(b.Items)) {
				t.Fatal("encoded again: other items")
			}
			a.Items, b.Items = Items{}, Items{}
			if !b.Open {
				b.Timeout = NoBudget
			}
			if !reflect.DeepEqual(a, b) {
				t.Fatalf("encoded again: %+v, want %+v", a, b)
			}
		}
		if !bytes.Equal(body, before) {
			t.Fatal("decoding has changed the message")
		}
	})
}

func BenchmarkFrames(b *testing.B) {
	item := make([]byte, 100)
	var items Items
	for range 600 {
		items.Append(item)
	}
	body := (&Frame{Stream: 1, Items: items}).AppendTo(nil)
	b.SetBytes(int64(len(body)))
	for b.Loop() {
		_ = DecodeFrames(body, func(f *Frame) bool {
			for {
				if _, ok := f.Items.Next(); !ok {
					return true
				}
			}
		})
	}
}
