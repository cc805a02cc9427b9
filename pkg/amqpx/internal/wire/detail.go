package wire

import (
	"bytes"

	"google.golang.org/protobuf/encoding/protowire"
)

// Detail is a typed value in a failure: a google.protobuf.Any
// (https://protobuf.dev/programming-guides/proto3/#any).
type Detail struct {
	// TypeURL names the type of the value; the name is the part after the last "/".
	TypeURL string
	// Value is the encoded value.
	Value []byte
}

// MaxDetailsBytes bounds the encoded details of a failure together: with the application's
// headers they must fit in a frame.
const MaxDetailsBytes = 16 << 10

// maxDetails bounds the details that a reader takes from a failure.
const maxDetails = 256

// Field numbers of google.protobuf.Any, and of the details in google.rpc.Status.
const (
	anyTypeURL    = 1
	anyValue      = 2
	statusDetails = 3
)

// size returns the size of the encoded Any.
func (d *Detail) size() (n int) {
	if d.TypeURL != "" {
		n += protowire.SizeTag(anyTypeURL) + protowire.SizeBytes(len(d.TypeURL))
	}
	if len(d.Value) > 0 {
		n += protowire.SizeTag(anyValue) + protowire.SizeBytes(len(d.Value))
	}
	return n
}

// appendTo appends the encoded Any.
func (d *Detail) appendTo(b []byte) []byte {
	b = appendText(b, anyTypeURL, d.TypeURL)
	return appendBlob(b, anyValue, d.Value)
}

// DetailsSize returns the size of encoded details, which [MaxDetailsBytes] bounds. It is the size
// of the header, and at least the size of the fields in a record.
func DetailsSize(details []Detail) (n int) {
	for i := range details {
		n += protowire.SizeTag(statusDetails) + protowire.SizeBytes(details[i].size())
	}
	return n
}

// appendDetails appends the details as fields of a message.
func appendDetails(b []byte, number protowire.Number, details []Detail) []byte {
	for i := range details {
		b = protowire.AppendTag(b, number, protowire.BytesType)
		b = protowire.AppendVarint(b, uint64(details[i].size())) //nolint:gosec // a length.
		b = details[i].appendTo(b)
	}
	return b
}

// EncodeDetails returns details as the value of [HeaderDetails]: a google.rpc.Status with only its
// details.
func EncodeDetails(details []Detail) []byte {
	return appendDetails(make([]byte, 0, DetailsSize(details)), statusDetails, details)
}

// DecodeDetails decodes the value of [HeaderDetails]. It returns nil for a value that is too
// large or malformed.
func DecodeDetails(b []byte) []Detail {
	if len(b) > MaxDetailsBytes {
		return nil
	}
	var l detailList
	for len(b) > 0 {
		var f field
		if f, b = nextField(b); b == nil {
			return nil
		}
		if f.number == statusDetails && f.kind == protowire.BytesType {
			l.add(f.bytes)
		}
	}
	return l.details
}

// detailList collects the details of a failure. Details that cannot be read, or are beyond a
// bound, make all details of the failure unreadable: their meaning may depend on each other.
type detailList struct {
	details []Detail
	bytes   int
	faulty  bool
}

// add decodes an Any.
func (l *detailList) add(b []byte) {
	l.bytes += protowire.SizeTag(statusDetails) + protowire.SizeBytes(len(b))
	if l.faulty = l.faulty || l.bytes > MaxDetailsBytes || len(l.details) == maxDetails; l.faulty {
		l.details = nil
		return
	}
	var d Detail
	for len(b) > 0 {
		var f field
		if f, b = nextField(b); b == nil {
			l.details, l.faulty = nil, true
			return
		}
		switch {
		case f.kind != protowire.BytesType:
		case f.number == anyTypeURL:
			d.TypeURL = string(f.bytes)
		case f.number == anyValue:
			d.Value = bytes.Clone(f.bytes)
		}
	}
	l.details = append(l.details, d)
}

// receivedDetails returns the details in the value of a header. Programs without byte arrays send
// the bytes as a long string.
func receivedDetails(v any) []Detail {
	switch t := v.(type) {
	case []byte:
		return DecodeDetails(t)
	case string:
		return DecodeDetails([]byte(t))
	default:
		return nil
	}
}
