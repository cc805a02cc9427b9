package amqpx

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	"rabbitmq-rpc/pkg/amqpx/internal/wire"
)

// Details of errors: typed values beside code and message, for programs. On the wire a detail is a
// google.protobuf.Any, as in gRPC and Connect (https://google.aip.dev/193#statusdetails), so
// details pass between these and this package unchanged.

// MaxDetailsBytes bounds the details of one error on the wire, all together.
const MaxDetailsBytes = wire.MaxDetailsBytes

// DetailEncoder is a value that can be a detail of an error ([Error.WithDetail]). [BadRequest],
// [ErrorInfo], [AnyDetail] and the result of [JSONDetail] are such values. Package amqpxproto turns
// any message of protocol buffers into one.
type DetailEncoder interface {
	// DetailType returns the name of the type: the full name of a message of protocol buffers,
	// such as "google.rpc.BadRequest", or a type URL with a "/".
	DetailType() string
	// EncodeDetail returns the encoded value.
	EncodeDetail() ([]byte, error)
}

// DetailDecoder is a variable that can receive a detail of an error ([Detail]), mostly a pointer.
type DetailDecoder interface {
	// DetailType returns the name of the type, as for [DetailEncoder].
	DetailType() string
	// DecodeDetail sets the variable to an encoded value.
	DecodeDetail(value []byte) error
}

// AnyDetail is a detail in its encoded form, a google.protobuf.Any.
type AnyDetail struct {
	// TypeURL names the type: the name is the part after the last "/".
	TypeURL string
	// Value is the encoded value.
	Value []byte
}

// DetailType implements [DetailEncoder].
func (d AnyDetail) DetailType() string { return d.TypeURL }

// EncodeDetail implements [DetailEncoder].
func (d AnyDetail) EncodeDetail() ([]byte, error) { return d.Value, nil }

// Beginnings of type URLs.
const (
	protoTypes = "type.googleapis.com/"
	jsonTypes  = "json/"
)

// typeURL returns the type URL of a DetailType.
func typeURL(name string) string {
	if strings.Contains(name, "/") {
		return name
	}
	return protoTypes + name
}

// hasType reports whether a type URL is of a DetailType. Of the URL of a message only the part
// after the last "/" counts (https://protobuf.dev/reference/protobuf/google.protobuf/#any).
func hasType(url, name string) bool {
	if strings.Contains(name, "/") {
		return url == name
	}
	return !strings.HasPrefix(url, jsonTypes) && url[strings.LastIndexByte(url, '/')+1:] == name
}

// JSONDetail returns a detail whose encoded value is JSON: of the value, or with [Detail] the
// variable to which value points. The name must not be empty, and distinguishes details of one
// error. Programs in other languages find the detail by the type URL "json/" + name.
func JSONDetail(name string, value any) interface {
	DetailEncoder
	DetailDecoder
} {
	return jsonDetail{name, value}
}

type jsonDetail struct {
	name  string
	value any
}

// DetailType implements [DetailEncoder] and [DetailDecoder].
func (d jsonDetail) DetailType() string { return jsonTypes + d.name }

// EncodeDetail implements [DetailEncoder].
func (d jsonDetail) EncodeDetail() ([]byte, error) { return json.Marshal(d.value) }

// DecodeDetail implements [DetailDecoder].
func (d jsonDetail) DecodeDetail(value []byte) error { return json.Unmarshal(value, d.value) }

// WithDetail returns a copy of the error with further details, which reach the caller in the order
// in which they were added, and must hold no secret. The details of an error may take
// [MaxDetailsBytes] together. A detail beyond this limit, and one that cannot be encoded, is left
// out: the caller gets code, message and the other details, and the server logs a warning.
func (e *Error) WithDetail(details ...DetailEncoder) *Error {
	if e == nil {
		return nil
	}
	own := *e
	own.details = slices.Clone(own.details)
	for _, d := range details {
		if err := own.addDetail(d); err != nil {
			own.leftOut = errors.Join(own.leftOut, err)
		}
	}
	return &own
}

// addDetail encodes a detail, or returns why it must be left out.
func (e *Error) addDetail(d DetailEncoder) (err error) {
	if d == nil {
		return errors.New("a detail is nil")
	}
	defer func() { // a nil pointer with a method of its value, for example
		if v := recover(); v != nil {
			err = fmt.Errorf("detail of type %T: %s", d, panicText(v))
		}
	}()
	name := d.DetailType()
	value, err := d.EncodeDetail()
	switch {
	case err != nil:
		return fmt.Errorf("detail %q: %w", name, err)
	case strings.HasSuffix(name, "/") || name == "" || !utf8.ValidString(name):
		return fmt.Errorf("detail of type %T: %q names no type", d, name)
	}
	all := append(e.details, wire.Detail{TypeURL: typeURL(name), Value: slices.Clone(value)}) //nolint:gocritic // a copy of its own.
	if n := wire.DetailsSize(all); n > MaxDetailsBytes {
		return fmt.Errorf("detail %q: the details would take %d bytes, the limit is %d", name, n, MaxDetailsBytes)
	}
	e.details = all
	return nil
}

// Details returns the details of the error in their order; nil if there are none.
func (e *Error) Details() []AnyDetail {
	if e == nil || len(e.details) == 0 {
		return nil
	}
	all := make([]AnyDetail, len(e.details))
	for i, d := range e.details {
		all[i] = AnyDetail{TypeURL: d.TypeURL, Value: slices.Clone(d.Value)}
	}
	return all
}

// Detail sets into to the first detail of its type that can be decoded, of the first [*Error] in
// err's chain, and reports whether there is one:
//
//	var violations amqpx.BadRequest
//	if amqpx.Detail(err, &violations) {
//
// If there is none, a decoder may have changed into all the same.
func Detail(err error, into DetailDecoder) bool {
	coded := codedError(err)
	if coded == nil || into == nil {
		return false
	}
	name := into.DetailType()
	for _, d := range coded.details {
		if hasType(d.TypeURL, name) && into.DecodeDetail(d.Value) == nil {
			return true
		}
	}
	return false
}
