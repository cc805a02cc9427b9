package amqpx

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"
	"strings"
	"sync"
)

// Codec encodes the requests and responses of a [Method]. The methods are called concurrently, and
// on a server with bytes of any program. A Codec may also have the method
//
//	MarshalAppend(buffer []byte, v any) ([]byte, error)
//
// which appends the encoded value to a buffer, must not keep the buffer, and is called instead of
// Marshal where the encoded value is copied anyway, as a request and an item of a stream are.
type Codec interface {
	// ContentType returns the content type of encoded values; "" sends and checks none.
	ContentType() string
	// Marshal encodes a request or a response.
	Marshal(v any) ([]byte, error)
	// Unmarshal decodes a body into the value to which v points, and must not keep the body. An
	// [*Error] reaches the caller unchanged, any other error with [CodeInvalidArgument].
	Unmarshal(body []byte, v any) error
}

// appendCodec is the further method that a [Codec] may have.
type appendCodec interface {
	MarshalAppend(buffer []byte, v any) ([]byte, error)
}

// JSON returns the codec of encoding/json, content type "application/json". A field of a request
// that the type does not have is ignored, so that a caller may know more fields than the server;
// [StrictJSON] refuses it. A value of a wrong type is [CodeInvalidArgument], with the field in
// the text and in a [BadRequest]. An empty body is no JSON, but stands for an empty struct{}.
func JSON() Codec { return jsonCodec{} }

// StrictJSON is [JSON] without unknown fields: one in a message makes the call fail and is named
// like a value of a wrong type. Then no field can be added to a request before every server
// knows it, nor to a response before every caller does.
func StrictJSON() Codec { return jsonCodec{strict: true} }

type jsonCodec struct{ strict bool }

// ContentType implements [Codec].
func (jsonCodec) ContentType() string { return "application/json" }

// Marshal implements [Codec].
func (jsonCodec) Marshal(v any) ([]byte, error) { return json.Marshal(v) }

// MarshalAppend implements appendCodec.
func (jsonCodec) MarshalAppend(buffer []byte, v any) ([]byte, error) {
	e, ok := jsonEncoders.Get().(*jsonEncoder)
	if !ok {
		e = &jsonEncoder{}
		e.Encoder = json.NewEncoder(e)
	}
	e.out = buffer
	err := e.Encode(v)
	out := e.out
	e.out = nil
	jsonEncoders.Put(e)
	if err != nil {
		return buffer, err
	}
	return out[:len(out)-1], nil // without the end of the line
}

// Unmarshal implements [Codec].
func (c jsonCodec) Unmarshal(body []byte, v any) error {
	if len(body) == 0 {
		if t := reflect.TypeOf(v).Elem(); t.Kind() == reflect.Struct && t.NumField() == 0 {
			return nil
		}
		return Errorf(CodeInvalidArgument, "the body is empty: want JSON")
	}
	if len(body) <= maxReusedBody {
		if isJSON, err := c.unmarshalAgain(body, v); isJSON {
			return jsonFault(err)
		}
	}
	return c.unmarshalOnce(body, v)
}

// jsonEncoder is an encoder whose memory is used again. It appends to out.
type jsonEncoder struct {
	*json.Encoder

	out []byte
}

// Write implements [io.Writer].
func (e *jsonEncoder) Write(p []byte) (int, error) {
	e.out = append(e.out, p...)
	return len(p), nil
}

// jsonDecoder is a decoder whose memory is used again: a new one takes four allocations for each
// body. It reads from left.
type jsonDecoder struct {
	*json.Decoder

	left []byte
}

// Read implements [io.Reader].
func (d *jsonDecoder) Read(p []byte) (int, error) {
	if len(d.left) == 0 {
		return 0, io.EOF
	}
	n := copy(p, d.left)
	d.left = d.left[n:]
	return n, nil
}

// jsonEncoders, jsonDecoders and strictJSONDecoders have idle memory.
//
//nolint:gochecknoglobals // for any goroutine.
var jsonEncoders, jsonDecoders, strictJSONDecoders sync.Pool

// unmarshalAgain decodes a body with memory of earlier bodies. isJSON is false, and err has no
// meaning, if the body is not one value.
func (c jsonCodec) unmarshalAgain(body []byte, v any) (isJSON bool, err error) {
	idle := &jsonDecoders
	if c.strict {
		idle = &strictJSONDecoders
	}
	d, ok := idle.Get().(*jsonDecoder)
	if !ok {
		d = &jsonDecoder{}
		d.Decoder = json.NewDecoder(d)
		if c.strict {
			d.DisallowUnknownFields()
		}
	}
	d.left = bytes.TrimRight(body, " \t\r\n")
	end := d.InputOffset() + int64(len(d.left))
	if err = d.Decode(v); err != nil {
		return json.Valid(body), err // the decoder may have failed for good
	}
	if len(d.left) > 0 || d.InputOffset() != end { // there is text after the value
		return false, nil
	}
	d.left = nil // it would keep the body
	idle.Put(d)
	return true, nil
}

// unmarshalOnce decodes a body with new memory.
func (c jsonCodec) unmarshalOnce(body []byte, v any) error {
	if !c.strict {
		return jsonFault(json.Unmarshal(body, v))
	}
	d := json.NewDecoder(bytes.NewReader(body))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return jsonFault(err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return Errorf(CodeInvalidArgument, "not JSON: there is text after the value")
	}
	return nil
}

// unknownField is the beginning of encoding/json's error for an unknown field, which has no type.
const unknownField = `json: unknown field "`

// jsonFault returns an error of encoding/json as one for the caller, without names of Go's types.
func jsonFault(err error) error {
	if err == nil {
		return nil
	}
	if wrong, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
		return wrongType(wrong)
	}
	if name, ok := strings.CutPrefix(err.Error(), unknownField); ok {
		return fieldFault(strings.TrimSuffix(name, `"`), "is unknown")
	}
	if syntax, ok := errors.AsType[*json.SyntaxError](err); ok {
		return Errorf(CodeInvalidArgument, "not JSON at byte %d: %w", syntax.Offset, err)
	}
	return Errorf(CodeInvalidArgument, "%w", err)
}

// wrongType returns the error for a value of a wrong type.
func wrongType(wrong *json.UnmarshalTypeError) error {
	description := fmt.Sprintf("want %s, got %s", jsonTypeOf(wrong.Type), wrong.Value)
	if wrong.Field == "" {
		return Errorf(CodeInvalidArgument, "the value: %s", description)
	}
	return fieldFault(wrong.Field, description)
}

// fieldFault returns the error for a wrong field.
func fieldFault(field, description string) error {
	return Errorf(CodeInvalidArgument, "field %q: %s", field, description).
		WithDetail(BadRequest{FieldViolations: []FieldViolation{{Field: field, Description: description}}})
}

// jsonTypeOf describes the JSON that a type is decoded from.
func jsonTypeOf(t reflect.Type) string {
	switch t.Kind() {
	case reflect.Bool:
		return "true or false"
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		return fmt.Sprintf("a whole number of %d bits", t.Bits())
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		return fmt.Sprintf("a whole number of %d bits, not negative", t.Bits())
	case reflect.Float32, reflect.Float64:
		return "a number"
	case reflect.String:
		return "a string"
	case reflect.Slice, reflect.Array:
		if t.Elem().Kind() == reflect.Uint8 {
			return "a string of base64"
		}
		return "an array"
	case reflect.Struct, reflect.Map:
		return "an object"
	case reflect.Pointer:
		return jsonTypeOf(t.Elem())
	default:
		return "another type"
	}
}

// Raw returns the codec of bodies that need no encoding: requests and responses are []byte or
// string. The content type is sent, and checked, unless it is "". A decoded []byte is the body
// itself.
func Raw(contentType string) Codec { return rawCodec(contentType) }

type rawCodec string

// ContentType implements [Codec].
func (c rawCodec) ContentType() string { return string(c) }

// Marshal implements [Codec].
func (rawCodec) Marshal(v any) ([]byte, error) {
	switch t := v.(type) {
	case []byte:
		return t, nil
	case string:
		return []byte(t), nil
	default:
		return nil, fmt.Errorf("a %T is neither []byte nor string", v)
	}
}

// Unmarshal implements [Codec].
func (rawCodec) Unmarshal(body []byte, v any) error {
	switch t := v.(type) {
	case *[]byte:
		*t = body
	case *string:
		*t = string(body)
	default:
		return Errorf(CodeInternal, "a %T is neither *[]byte nor *string", v)
	}
	return nil
}
