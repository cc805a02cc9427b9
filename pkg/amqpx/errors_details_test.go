package amqpx

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"

	"rabbitmq-rpc/pkg/amqpx/internal/wire"
)

func TestDetailsAreFoundByTheirTypes(t *testing.T) {
	t.Parallel()
	bad := BadRequest{FieldViolations: []FieldViolation{{Field: "a.b[1]", Description: "is empty", Reason: "EMPTY"}, {Description: "no field"}}}
	info := ErrorInfo{Reason: "OUT_OF_STOCK", Domain: "shop", Metadata: map[string]string{"sku": "tv", "": ""}}
	e := Errorf(CodeInvalidArgument, "no").WithDetail(bad, info).WithDetail(JSONDetail("list", []int{1, 2}), AnyDetail{"example.org/a.B", []byte{1}})
	err := fmt.Errorf("around: %w", e)

	var gotBad BadRequest
	if !Detail(err, &gotBad) || !reflect.DeepEqual(gotBad, bad) {
		t.Errorf("got %+v, want %+v", gotBad, bad)
	}
	var gotInfo ErrorInfo
	if !Detail(err, &gotInfo) || !reflect.DeepEqual(gotInfo, info) {
		t.Errorf("got %+v, want %+v", gotInfo, info)
	}
	var list []int
	if !Detail(err, JSONDetail("list", &list)) || !slices.Equal(list, []int{1, 2}) {
		t.Errorf("got %v", list)
	}
	wantSame(t, "another name", Detail(err, JSONDetail("other", &list)), false)
	var urls []string
	for _, d := range e.Details() {
		urls = append(urls, d.TypeURL)
	}
	want := []string{"type.googleapis.com/google.rpc.BadRequest", "type.googleapis.com/google.rpc.ErrorInfo", "json/list", "example.org/a.B"}
	if !slices.Equal(urls, want) {
		t.Errorf("types %q, want %q", urls, want)
	}
	wantSame(t, "detail of no error", Detail(nil, &gotBad), false)
	wantSame(t, "detail of an error without code", Detail(errors.New("x"), &gotBad), false)
	wantSame(t, "detail for nothing", Detail(err, nil), false)
	if details := (*Error)(nil).WithDetail(bad).Details(); details != nil {
		t.Errorf("a nil error has details %v", details)
	}
}

// Of several details of a type, the first that can be decoded counts.
func TestDetailThatCannotBeDecodedIsPassedOver(t *testing.T) {
	t.Parallel()
	e := Errorf(CodeAborted, "no").WithDetail(AnyDetail{"x/google.rpc.ErrorInfo", []byte{0xff}}, AnyDetail{"json/google.rpc.ErrorInfo", []byte("{}")}, ErrorInfo{Reason: "R"}, ErrorInfo{Reason: "S"})
	var info ErrorInfo
	if !Detail(e, &info) || info.Reason != "R" || info.Domain != "" {
		t.Errorf("got %+v", info)
	}
}

// failingDetail is a detail that cannot be encoded.
type failingDetail struct{ name string }

func (d *failingDetail) DetailType() string { return d.name }

func (d *failingDetail) EncodeDetail() ([]byte, error) { return nil, errors.New("no bytes") }

func TestDetailsThatAreLeftOut(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		add  DetailEncoder
		want string
	}{
		"nil":             {nil, "a detail is nil"},
		"a nil pointer":   {(*failingDetail)(nil), "*amqpx.failingDetail"},
		"not encodable":   {&failingDetail{"a.B"}, `"a.B": no bytes`},
		"without a type":  {AnyDetail{}, "names no type"},
		"without a name":  {AnyDetail{TypeURL: "a/"}, "names no type"},
		"a type not text": {AnyDetail{TypeURL: "a/\xff"}, "names no type"},
		"a channel":       {JSONDetail("c", make(chan int)), "unsupported type"},
		"too large":       {AnyDetail{"a/B", make([]byte, MaxDetailsBytes)}, "limit is 16384"},
	} {
		e := Errorf(CodeAborted, "no").WithDetail(ErrorInfo{Reason: "1"}, c.add, ErrorInfo{Reason: "2"})
		if len(e.details) != 2 || e.leftOut == nil || !strings.Contains(e.leftOut.Error(), c.want) {
			t.Errorf("%s: %d details, left out because of %v; want two, and %q", name, len(e.details), e.leftOut, c.want)
		}
	}
}

func TestDetailsUpToTheLimit(t *testing.T) {
	t.Parallel()
	most := AnyDetail{TypeURL: "a/B"}
	for most.Value = make([]byte, MaxDetailsBytes); wire.DetailsSize([]wire.Detail{{TypeURL: most.TypeURL, Value: most.Value}}) > MaxDetailsBytes; {
		most.Value = most.Value[1:]
	}
	e := Errorf(CodeAborted, "no").WithDetail(most)
	if len(e.Details()) != 1 || e.leftOut != nil {
		t.Errorf("%d details, %v", len(e.Details()), e.leftOut)
	}
	if got := wire.DecodeDetails(wire.EncodeDetails(e.details)); !reflect.DeepEqual(got, e.details) {
		t.Error("the largest details cannot be read")
	}
}

// An error with a detail is another error: the first has none.
func TestErrorsDoNotChangeByDetails(t *testing.T) {
	t.Parallel()
	value := []byte("v")
	base := Errorf(CodeAborted, "no").WithDetail(AnyDetail{"a/B", value})
	first, second := base.WithDetail(ErrorInfo{Reason: "1"}), base.WithDetail(ErrorInfo{Reason: "2"})
	value[0] = 'x'
	base.Details()[0].Value[0] = 'y'
	for e, want := range map[*Error]string{first: "1", second: "2"} {
		var info ErrorInfo
		if !Detail(e, &info) || info.Reason != want || string(e.Details()[0].Value) != "v" {
			t.Errorf("got %+v, want %q, and %q", info, want, e.Details()[0].Value)
		}
	}
	wantSame(t, "details of the first", len(base.Details()), 1)
}

func FuzzStandardDetails(f *testing.F) {
	bad, _ := BadRequest{FieldViolations: []FieldViolation{{"f", "d", "r"}, {}}}.EncodeDetail()
	info, _ := ErrorInfo{Reason: "r", Domain: "d", Metadata: map[string]string{"k": "v"}}.EncodeDetail()
	f.Add(bad)
	f.Add(info)
	f.Add([]byte{0x0a, 0x05, 0x08, 0x01, 0x12, 0x01, 'x'})
	f.Fuzz(func(t *testing.T, b []byte) {
		var bad, again BadRequest
		if bad.DecodeDetail(b) == nil {
			encoded, _ := bad.EncodeDetail()
			if err := again.DecodeDetail(encoded); err != nil || len(again.FieldViolations) != len(bad.FieldViolations) {
				t.Errorf("got %+v, %v, want %+v", again, err, bad)
			}
		}
		var info, second ErrorInfo
		if info.DecodeDetail(b) == nil {
			encoded, _ := info.EncodeDetail()
			if err := second.DecodeDetail(encoded); err != nil {
				t.Errorf("%+v: %v", info, err)
			}
		}
	})
}
