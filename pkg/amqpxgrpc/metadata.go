package amqpxgrpc

import (
	"encoding/base64"
	"fmt"
	"strings"

	"google.golang.org/grpc/metadata"
)

// Metadata travels in the application headers of requests and responses, and in the trailers of
// responses, a header or trailer for each key. The names have a prefix, because gRPC allows keys that
// package amqpx reserves.
//
//	key        value                 header
//	any        one                   the text
//	any        several               the texts, with a NUL between two of them, which no value has
//	…-bin      one                   the bytes
//	…-bin      several               a text: base64 without padding, with a comma between two values
//
// A header holds text and bytes as different types. Neither keeps a call out of batches, as a list
// of values would. Lists are understood on arrival.
const metadataPrefix = "md-"

const binarySuffix = "-bin"

// isReserved reports whether gRPC sets the key itself. Such keys do not travel as metadata, as in
// grpc-go.
func isReserved(key string) bool {
	switch key {
	case "content-type", "user-agent", "te",
		"grpc-message-type", "grpc-encoding", "grpc-message", "grpc-status", "grpc-timeout", "grpc-status-details-bin":
		return true
	default:
		return strings.HasPrefix(key, ":")
	}
}

// checkMetadata returns an error for keys and values that gRPC does not send either
// (https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md#requests).
func checkMetadata(md metadata.MD) error {
	for key, values := range md {
		if key == "" {
			return fmt.Errorf("metadata: a key is empty")
		}
		if isReserved(key) {
			continue
		}
		if i := strings.IndexFunc(key, isNoKey); i >= 0 {
			return fmt.Errorf("metadata key %q: only lower-case letters, digits and \"-_.\" are allowed", key)
		}
		for _, value := range values {
			if !strings.HasSuffix(key, binarySuffix) && strings.ContainsFunc(value, isNoValue) {
				return fmt.Errorf("metadata key %q: a value has characters other than printable ASCII", key)
			}
		}
	}
	return nil
}

func isNoKey(r rune) bool {
	return (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '-' && r != '_' && r != '.'
}

func isNoValue(r rune) bool { return r < ' ' || r > '~' }

// encodeHeader returns metadata as headers or trailers.
func encodeHeader(md metadata.MD) map[string]any {
	header := make(map[string]any, len(md))
	for key, values := range md {
		if len(values) > 0 && !isReserved(key) {
			header[metadataPrefix+key] = encodeValues(key, values)
		}
	}
	return header
}

// encodeValues returns the values of one key, of which there is at least one, as a header's value.
func encodeValues(key string, values []string) any {
	switch {
	case !strings.HasSuffix(key, binarySuffix):
		return strings.Join(values, "\x00")
	case len(values) == 1:
		return []byte(values[0])
	default:
		encoded := make([]string, len(values))
		for i, v := range values {
			encoded[i] = base64.RawStdEncoding.EncodeToString([]byte(v))
		}
		return strings.Join(encoded, ",")
	}
}

// decodeHeader returns the metadata in headers or trailers; those without the prefix are no metadata.
func decodeHeader(header map[string]any) (metadata.MD, error) {
	md := make(metadata.MD, len(header))
	for name, value := range header {
		key, ok := strings.CutPrefix(name, metadataPrefix)
		if !ok {
			continue
		}
		key = strings.ToLower(key)
		values, err := decodeValues(nil, key, value)
		if err != nil {
			return nil, fmt.Errorf("header %q: %w", name, err)
		}
		md[key] = append(md[key], values...)
	}
	return md, nil
}

// decodeValues appends the values of one key that a header's value holds.
func decodeValues(values []string, key string, value any) ([]string, error) {
	binary := strings.HasSuffix(key, binarySuffix)
	switch v := value.(type) {
	case []byte:
		if binary {
			return append(values, string(v)), nil
		}
		return append(values, strings.Split(string(v), "\x00")...), nil
	case string:
		if !binary {
			return append(values, strings.Split(v, "\x00")...), nil
		}
		for part := range strings.SplitSeq(v, ",") {
			b, err := base64.RawStdEncoding.DecodeString(strings.TrimRight(part, "="))
			if err != nil {
				return nil, fmt.Errorf("a text for binary metadata: %w", err)
			}
			values = append(values, string(b))
		}
		return values, nil
	case []any:
		var err error
		for _, element := range v {
			if _, list := element.([]any); list {
				return nil, fmt.Errorf("a list in a list")
			}
			if values, err = decodeValues(values, key, element); err != nil {
				return nil, err
			}
		}
		return values, nil
	default:
		return nil, fmt.Errorf("value of type %T: want text, bytes, or a list of them", value)
	}
}
