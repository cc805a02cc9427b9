package amqpxgrpc

import (
	"testing"

	"google.golang.org/grpc/codes"

	"rabbitmq-rpc/pkg/amqpx"
)

// TestCodes: each code of gRPC but OK has a code of amqpx with the same name, and comes back.
func TestCodes(t *testing.T) {
	t.Parallel()
	seen := make(map[amqpx.Code]bool)
	for c := codes.Canceled; c <= codes.Unauthenticated; c++ {
		mapped := toCode(c)
		var byName codes.Code
		if err := byName.UnmarshalJSON([]byte(`"` + upper(string(mapped)) + `"`)); err != nil || byName != c {
			t.Errorf("%v became %q: %v", c, mapped, err)
		}
		if back := fromCode(mapped); back != c || !mapped.Valid() || seen[mapped] {
			t.Errorf("%v became %q and then %v", c, mapped, back)
		}
		seen[mapped] = true
	}
	for got, want := range map[any]any{
		toCode(codes.OK): amqpx.Code(""), toCode(17): amqpx.CodeUnknown, toCode(1 << 31): amqpx.CodeUnknown,
		fromCode("no code"): codes.Unknown, fromCode(""): codes.Unknown,
	} {
		if got != want {
			t.Errorf("got %v, want %v", got, want)
		}
	}
}

// upper returns the name of a code as gRPC writes it in JSON.
func upper(name string) string {
	b := []byte(name)
	for i, c := range b {
		if c >= 'a' && c <= 'z' {
			b[i] = c - 'a' + 'A'
		}
	}
	if string(b) == "CANCELED" {
		return "CANCELLED"
	}
	return string(b)
}
