package amqpxgrpc

import (
	"reflect"
	"strings"
	"testing"

	"google.golang.org/grpc/metadata"
)

// TestMetadataRoundTrip: values come back as they were, and in their order.
func TestMetadataRoundTrip(t *testing.T) {
	t.Parallel()
	md := metadata.MD{
		"one": {"a"}, "empty": {""}, "several": {"a", "", "b,c"}, "rpc-code": {"of the application"}, "cc": {"d"},
		"one-bin": {"\x00\xff"}, "empty-bin": {""}, "several-bin": {"\x00", "", "\xff\xfe,"},
	}
	if err := checkMetadata(md); err != nil {
		t.Fatal(err)
	}
	header := encodeHeader(md)
	for name, value := range header {
		switch value.(type) {
		case string, []byte:
		default:
			t.Errorf("%s is a %T, which keeps a call out of batches", name, value)
		}
	}
	header["other"], header["rpc-other"] = 1, 2
	got, err := decodeHeader(header)
	if err != nil || !reflect.DeepEqual(got, md) {
		t.Errorf("got %v, %v, want %v", got, err, md)
	}
}

// TestMetadataThatDoesNotTravel: what gRPC sets itself, and keys without values.
func TestMetadataThatDoesNotTravel(t *testing.T) {
	t.Parallel()
	md := metadata.MD{
		":authority": {"a"}, "content-type": {"b"}, "user-agent": {"c"}, "te": {"d"}, "grpc-timeout": {"1S"},
		"grpc-status": {"0"}, "grpc-status-details-bin": {"e"}, "none": {},
	}
	if err := checkMetadata(md); err != nil {
		t.Error(err)
	}
	if header := encodeHeader(md); len(header) > 0 {
		t.Errorf("got %v", header)
	}
}

func TestMetadataThatIsRefused(t *testing.T) {
	t.Parallel()
	for name, md := range map[string]metadata.MD{
		"a key is empty":    {"": {"a"}},
		`"Upper"`:           {"Upper": {"a"}},
		`"a b"`:             {"a b": {"a"}},
		`"ä"`:               {"ä": {"a"}},
		`"value": a value`:  {"value": {"fine", "ä"}},
		`"value2": a value`: {"value2": {"a\nb"}},
	} {
		if err := checkMetadata(md); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

// TestForeignMetadata: programs in other languages send lists, bytes for text, and base64 for
// bytes, with and without padding.
func TestForeignMetadata(t *testing.T) {
	t.Parallel()
	got, err := decodeHeader(map[string]any{
		"md-List": []any{"a", []byte("b")}, "md-bytes": []byte("c"), "md-x-bin": "AP8=", "md-y-bin": "AP8,AA==", "md-z-bin": []any{[]byte{1}, "Ag"},
	})
	want := metadata.MD{
		"list": {"a", "b"}, "bytes": {"c"}, "x-bin": {"\x00\xff"}, "y-bin": {"\x00\xff", "\x00"}, "z-bin": {"\x01", "\x02"},
	}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, %v, want %v", got, err, want)
	}
	for name, value := range map[string]any{
		"md-number": 1, "md-nil": nil, "md-a-bin": "no base64!", "md-nested": []any{[]any{"a"}}, "md-map": map[string]any{}, "md-in": []any{2},
	} {
		if md, err := decodeHeader(map[string]any{name: value}); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: got %v, %v", name, md, err)
		}
	}
}
