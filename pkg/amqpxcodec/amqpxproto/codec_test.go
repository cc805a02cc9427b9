package amqpxproto_test

import (
	"context"
	"testing"

	"go.uber.org/goleak"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"rabbitmq-rpc/pkg/amqpx"
	"rabbitmq-rpc/pkg/amqpxcodec/amqpxproto"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

type (
	number = wrapperspb.Int64Value
	text   = wrapperspb.StringValue
)

// caller has a handler answer the calls, without a broker.
type caller amqpx.Handler

func (c caller) Call(ctx context.Context, method string, body []byte, _ ...amqpx.CallOption) ([]byte, error) {
	return c(ctx, &amqpx.Request{Method: method, Body: body})
}

func TestMessagesTravel(t *testing.T) {
	t.Parallel()
	m := amqpx.NewMethod[*number, *text]("m", amqpxproto.Codec())
	c := caller(m.Handler(func(_ context.Context, n *number) (*text, error) {
		return wrapperspb.String(string(rune('a' + n.GetValue()))), nil
	}))
	for request, want := range map[*number]string{nil: "a", {}: "a", {Value: 2}: "c"} {
		got, err := m.Call(t.Context(), c, request)
		if err != nil || got.GetValue() != want {
			t.Errorf("%v: %v, %v, want %q", request, got, err, want)
		}
	}
}

func TestUnknownFieldsAreKept(t *testing.T) {
	t.Parallel()
	later := []byte{0x08, 0x05, 0x7a, 0x01, 'x'} // the value 5, and field 15
	var got *number
	if err := amqpxproto.Codec().Unmarshal(later, &got); err != nil || got.GetValue() != 5 {
		t.Fatalf("%v, %v", got, err)
	}
	if again, err := amqpxproto.Codec().Marshal(got); err != nil || string(again) != string(later) {
		t.Errorf("%x, %v, want %x", again, err, later)
	}
}

func TestWhatIsNoMessage(t *testing.T) {
	t.Parallel()
	numbers := amqpx.NewMethod[*number, *number]("m", amqpxproto.Codec())
	echo := numbers.Handler(func(_ context.Context, n *number) (*number, error) { return n, nil })
	if _, err := echo(t.Context(), &amqpx.Request{Body: []byte{0xff}}); amqpx.CodeOf(err) != amqpx.CodeInvalidArgument {
		t.Errorf("a malformed request: %v", err)
	}
	garbage := caller(func(context.Context, *amqpx.Request) ([]byte, error) { return []byte{0xff}, nil })
	if _, err := numbers.Call(t.Context(), garbage, nil); amqpx.CodeOf(err) != amqpx.CodeInternal || amqpx.OutcomeOf(err) != amqpx.Ran {
		t.Errorf("a malformed response: %v", err)
	}
	if _, err := amqpx.NewMethod[string, *number]("m", amqpxproto.Codec()).Call(t.Context(), garbage, "text"); amqpx.OutcomeOf(err) != amqpx.DidNotRun {
		t.Errorf("a request that is a string: %v", err)
	}
	for name, v := range map[string]any{"no pointer": 1, "a pointer to a string": new(string), "a pointer to a pointer": new(*int), "nil": (*int)(nil)} {
		if err := amqpxproto.Codec().Unmarshal(nil, v); amqpx.CodeOf(err) != amqpx.CodeInternal {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestMessagesAreAppended: package amqpx finds the further method of the codec.
func TestMessagesAreAppended(t *testing.T) {
	t.Parallel()
	codec, ok := amqpxproto.Codec().(interface {
		MarshalAppend(buffer []byte, v any) ([]byte, error)
	})
	if !ok {
		t.Fatal("the codec cannot append")
	}
	for _, m := range []*number{nil, {}, {Value: 2}} {
		want, err := amqpxproto.Codec().Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := codec.MarshalAppend([]byte("before"), m); err != nil || string(got) != "before"+string(want) {
			t.Errorf("%v: %q, %v, want %q behind the text", m, got, err, want)
		}
	}
	if _, err := codec.MarshalAppend(nil, "text"); err == nil {
		t.Error("a string was encoded")
	}
}

func FuzzUnmarshal(f *testing.F) {
	f.Add([]byte{0x08, 0x05})
	f.Add([]byte{0xff})
	f.Fuzz(func(t *testing.T, body []byte) {
		var m *number
		err := amqpxproto.Codec().Unmarshal(body, &m)
		if valid := proto.Unmarshal(body, &number{}) == nil; valid != (err == nil) || valid != (m != nil) {
			t.Errorf("%v, %v", m, err)
		}
	})
}
