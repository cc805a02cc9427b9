package amqpx

import (
	"errors"
	"maps"
	"slices"
	"strings"

	"google.golang.org/protobuf/encoding/protowire"
)

// Two of the standard details of google.rpc
// (https://github.com/googleapis/googleapis/blob/master/google/rpc/error_details.proto), encoded by
// hand: the runtime of protocol buffers is not linked.

// BadRequest says which fields of a request are wrong: google.rpc.BadRequest. It is a detail of
// errors with [CodeInvalidArgument].
type BadRequest struct {
	FieldViolations []FieldViolation
}

// FieldViolation is one wrong field.
type FieldViolation struct {
	// Field is the path to the field, such as "customer.addresses[1].zip".
	Field string
	// Description says what is wrong.
	Description string
	// Reason is a constant for programs, such as "TOO_LONG"; may be "".
	Reason string
}

// ErrorInfo says why a call failed, for programs: google.rpc.ErrorInfo.
type ErrorInfo struct {
	// Reason is a constant, such as "OUT_OF_STOCK", and Domain the service that defines it.
	Reason, Domain string
	// Metadata holds further facts; may be nil.
	Metadata map[string]string
}

// DetailType implements [DetailEncoder] and [DetailDecoder].
func (BadRequest) DetailType() string { return "google.rpc.BadRequest" }

// DetailType implements [DetailEncoder] and [DetailDecoder].
func (ErrorInfo) DetailType() string { return "google.rpc.ErrorInfo" }

// Field numbers of the messages.
const (
	badRequestViolations = 1

	violationField       = 1
	violationDescription = 2
	violationReason      = 3

	infoReason   = 1
	infoDomain   = 2
	infoMetadata = 3

	entryKey   = 1
	entryValue = 2
)

// EncodeDetail implements [DetailEncoder]. Text that is not UTF-8 is replaced.
func (d BadRequest) EncodeDetail() ([]byte, error) {
	var b []byte
	for _, v := range d.FieldViolations {
		b = appendMessage(b, badRequestViolations, func(m []byte) []byte {
			m = appendString(m, violationField, v.Field)
			m = appendString(m, violationDescription, v.Description)
			return appendString(m, violationReason, v.Reason)
		})
	}
	return b, nil
}

// DecodeDetail implements [DetailDecoder].
func (d *BadRequest) DecodeDetail(value []byte) error {
	*d = BadRequest{}
	return eachField(value, func(number protowire.Number, b []byte) error {
		if number != badRequestViolations {
			return nil
		}
		var v FieldViolation
		err := eachField(b, func(number protowire.Number, b []byte) error {
			switch number {
			case violationField:
				v.Field = string(b)
			case violationDescription:
				v.Description = string(b)
			case violationReason:
				v.Reason = string(b)
			default: // a field of a later version
			}
			return nil
		})
		d.FieldViolations = append(d.FieldViolations, v)
		return err
	})
}

// EncodeDetail implements [DetailEncoder]. Text that is not UTF-8 is replaced.
func (d ErrorInfo) EncodeDetail() ([]byte, error) {
	b := appendString(nil, infoReason, d.Reason)
	b = appendString(b, infoDomain, d.Domain)
	for _, key := range slices.Sorted(maps.Keys(d.Metadata)) {
		b = appendMessage(b, infoMetadata, func(m []byte) []byte {
			return appendString(appendString(m, entryKey, key), entryValue, d.Metadata[key])
		})
	}
	return b, nil
}

// DecodeDetail implements [DetailDecoder].
func (d *ErrorInfo) DecodeDetail(value []byte) error {
	*d = ErrorInfo{}
	return eachField(value, func(number protowire.Number, b []byte) error {
		switch number {
		case infoReason:
			d.Reason = string(b)
		case infoDomain:
			d.Domain = string(b)
		case infoMetadata:
			var entry [entryValue + 1]string
			err := eachField(b, func(number protowire.Number, b []byte) error {
				if number <= entryValue {
					entry[number] = string(b)
				}
				return nil
			})
			if d.Metadata == nil {
				d.Metadata = make(map[string]string)
			}
			d.Metadata[entry[entryKey]] = entry[entryValue]
			return err
		default: // a field of a later version
		}
		return nil
	})
}

// appendString appends a field of type string, unless it is empty.
func appendString(b []byte, number protowire.Number, text string) []byte {
	if text == "" {
		return b
	}
	b = protowire.AppendTag(b, number, protowire.BytesType)
	return protowire.AppendString(b, strings.ToValidUTF8(text, "\uFFFD"))
}

// appendMessage appends a field with a message.
func appendMessage(b []byte, number protowire.Number, fill func([]byte) []byte) []byte {
	b = protowire.AppendTag(b, number, protowire.BytesType)
	return protowire.AppendBytes(b, fill(nil))
}

var errNotProto = errors.New("not a message of protocol buffers")

// eachField calls do for each field of type string, bytes or message.
func eachField(b []byte, do func(number protowire.Number, b []byte) error) error {
	for len(b) > 0 {
		number, kind, n := protowire.ConsumeTag(b)
		if n < 0 {
			return errNotProto
		}
		b = b[n:]
		if kind != protowire.BytesType {
			if n = protowire.ConsumeFieldValue(number, kind, b); n < 0 {
				return errNotProto
			}
			b = b[n:]
			continue
		}
		value, n := protowire.ConsumeBytes(b)
		if n < 0 {
			return errNotProto
		}
		if err := do(number, value); err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}
