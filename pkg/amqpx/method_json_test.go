package amqpx

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"sync"
	"testing"

	"rabbitmq-rpc/pkg/amqpx/internal/brokertest"
)

// jsonBodies are bodies at the edges of what is JSON.
func jsonBodies() []string {
	return []string{
		`{"sku":"tv","count":3,"customer":{"age":7},"notes":["a","b"],"extra":{"x":1}}`, `{}`, `[]`, `null`, `true`, `1`, `-1.5e3`, `"text"`, `""`,
		` {"sku":"tv"}`, "{\"sku\":\"tv\"}\n", " \t\r\n{} \t\r\n", "1 ", " ", "\n", `{} {}`, `{}x`, `1 2`, `{"sku":"tv"`, `{"sku"`, `{`, `"`, `[1`, `tru`, `-`,
		`{"count":300}`, `{"count":"x"}`, `{"sku":1,"count":2}`, `{"customer":{"age":"old"}}`, `{"notes":[1]}`, `{"other":1}`, `{"other":1} x`, `{"count":300} x`,
		"{\"sku\":\"\xff\"}", `{"sku":"\ud800"}`, "\x00", "\ufeff{}", `{"sku":"` + strings.Repeat("x", 3*maxReusedBody) + `"}`,
		strings.Repeat("[", 20_000), strings.Repeat(" ", 2*maxReusedBody) + "{}",
	}
}

// wantJSON compares the codec's result for a body with that of a codec that has no memory of
// earlier bodies.
func wantJSON[T any](t *testing.T, body string) {
	t.Helper()
	for _, strict := range []bool{false, true} {
		codec := jsonCodec{strict: strict}
		for _, turn := range []string{"first", "again"} { // with the memory of the first
			var got, want T
			err := codec.Unmarshal([]byte(body), &got)
			if len(body) == 0 {
				continue // for TestRequestThatIsWrong
			}
			wantErr := codec.unmarshalOnce([]byte(body), &want)
			if fmt.Sprint(err) != fmt.Sprint(wantErr) || CodeOf(err) != CodeOf(wantErr) {
				t.Errorf("%.60q as %T, strict %v, %s: error %v, want %v", body, got, strict, turn, err, wantErr)
			}
			if err == nil && !reflect.DeepEqual(got, want) {
				t.Errorf("%.60q as %T, strict %v, %s: %+v, want %+v", body, got, strict, turn, got, want)
			}
		}
	}
}

// The codec uses its memory again, and results and errors are those of a fresh decoder.
func TestJSONIsThatOfTheStandardLibrary(t *testing.T) {
	t.Parallel()
	for _, body := range jsonBodies() {
		wantJSON[orderRequest](t, body)
		wantJSON[any](t, body)
		wantJSON[string](t, body)
		wantJSON[float64](t, body)
		wantJSON[json.RawMessage](t, body)
	}
}

func FuzzJSON(f *testing.F) {
	for _, body := range jsonBodies() {
		f.Add(body)
	}
	f.Fuzz(func(t *testing.T, body string) {
		wantJSON[orderRequest](t, body)
		wantJSON[any](t, body)
		wantJSON[json.RawMessage](t, body)
	})
}

// marshaled has methods that encoding/json calls.
type marshaled struct{ fail bool }

func (m marshaled) MarshalJSON() ([]byte, error) {
	if m.fail {
		return nil, errors.New("no")
	}
	return []byte(`{"html":"<&>"}`), nil
}

func TestJSONIsEncodedAsByTheStandardLibrary(t *testing.T) {
	t.Parallel()
	for _, v := range []any{
		orderRequest{SKU: "<tv>&\u2028", Notes: []string{"a"}},
		&orderRequest{}, nil, 1.5, "text",
		map[string]int{"b": 1, "a": 2},
		[]byte("bytes"),
		marshaled{},
		marshaled{fail: true},
		make(chan int), json.RawMessage(`{ "a" : 1 }`), strings.Repeat("x", 3*maxReusedBody),
	} {
		want, wantErr := json.Marshal(v)
		for range 2 {
			got, err := JSON().Marshal(v)
			if fmt.Sprint(err) != fmt.Sprint(wantErr) || !bytes.Equal(got, want) {
				t.Errorf("%T: %q, %v, want %q, %v", v, got, err, want, wantErr)
			}
			got, err = jsonCodec{}.MarshalAppend([]byte("before"), v)
			if fmt.Sprint(err) != fmt.Sprint(wantErr) || err == nil && string(got) != "before"+string(want) {
				t.Errorf("%T, appended: %q, %v, want %q, %v", v, got, err, want, wantErr)
			}
		}
	}
}

// The codec takes memory for the values only, and for the encoded response, which the server keeps. The
// race detector makes pools forget a part of what they have.
//
//nolint:paralleltest // it counts allocations
func TestJSONUsesItsMemoryAgain(t *testing.T) {
	body, got, request := []byte(`{"body":"request"}`), benchDocument{}, any(benchDocument{"request"})
	if n := testing.AllocsPerRun(1000, func() { _ = JSON().Unmarshal(body, &got) }); n > 3 { // of the standard library: 5
		t.Errorf("Unmarshal: %v allocations", n)
	}
	if n := testing.AllocsPerRun(1000, func() { _ = StrictJSON().Unmarshal(body, &got) }); n > 3 {
		t.Errorf("strict Unmarshal: %v allocations", n)
	}
	var buffer []byte
	if n := testing.AllocsPerRun(1000, func() { buffer, _ = jsonCodec{}.MarshalAppend(buffer[:0], request) }); n > 1 { // none without the race detector
		t.Errorf("MarshalAppend: %v allocations", n)
	}
}

// Calls at once, some of which are canceled, do not see each other's requests and responses, although
// they use the same memory in turn.
func TestTypedCallsDoNotShareMemory(t *testing.T) {
	t.Parallel()
	m := NewMethod[benchDocument, benchDocument]("m", JSON())
	for _, mode := range []BatchMode{BatchOff, BatchAuto} {
		b := brokertest.New()
		s := startServer(t, b, handlers{"m": m.Handler(func(_ context.Context, in benchDocument) (benchDocument, error) { return in, nil })}, WithBatch(mode))
		c := startClient(t, b, WithBatch(mode))
		if err := errors.Join(s.WaitReady(t.Context()), c.WaitReady(t.Context())); err != nil {
			t.Fatal(err)
		}
		var callers sync.WaitGroup
		for caller := range 8 {
			callers.Go(func() {
				for i := range 200 {
					text := strings.Repeat(fmt.Sprintf("%d-%d ", caller, i), 1+i%50)
					ctx, cancel := context.WithCancel(t.Context())
					if i%5 == caller%5 {
						go cancel() // before, while or after the call is made; ends at once
					}
					got, err := m.Call(ctx, c, benchDocument{text})
					cancel()
					if err == nil && got.Body != text || err != nil && CodeOf(err) != CodeCanceled {
						t.Errorf("%q: got %q, %v", text, got.Body, err)
					}
				}
			})
		}
		callers.Wait()
	}
}
