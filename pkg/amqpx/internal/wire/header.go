package wire

import (
	"encoding/base64"
	"errors"
	"fmt"
	"maps"
	"math"
	"reflect"
	"strconv"
	"strings"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

// Header names. All names with the prefix are reserved.
const (
	HeaderPrefix     = "rpc-"
	HeaderTimeout    = HeaderPrefix + "timeout-ms"
	HeaderIdempotent = HeaderPrefix + "idempotent"
	HeaderMethod     = HeaderPrefix + "method"
	HeaderCode       = HeaderPrefix + "code"
	HeaderMessage    = HeaderPrefix + "message"
	HeaderRan        = HeaderPrefix + "ran"
	HeaderRetryAfter = HeaderPrefix + "retry-after-ms"
	HeaderQueueTime  = HeaderPrefix + "queue-us"
	HeaderHandler    = HeaderPrefix + "handler-us"
	HeaderResent     = HeaderPrefix + "resent"
	HeaderRetry      = HeaderPrefix + "retry"
	HeaderServer     = HeaderPrefix + "server"
	HeaderDetails    = HeaderPrefix + "details"
	HeaderAccept     = HeaderPrefix + "accept-encoding"
	// HeaderTrailer is the beginning of the names of a response's trailers.
	HeaderTrailer    = HeaderPrefix + "trailer-"
	HeaderTimes      = HeaderPrefix + "times"
	HeaderDeliveries = HeaderPrefix + "deliveries"
	HeaderDeadReason = HeaderPrefix + "dead-reason"
	HeaderDeadQueue  = HeaderPrefix + "dead-queue"
	HeaderDeadTime   = HeaderPrefix + "dead-time"
	// HeaderUser holds the caller of a request in a copy by a server.
	HeaderUser = HeaderPrefix + "user"
	// HeaderDeath is the header in which the broker records dead-lettering
	// (https://www.rabbitmq.com/docs/dlx).
	HeaderDeath = "x-death"
	// HeaderCC and HeaderBCC name further queues: the broker routes a copy of the message to
	// each. A value other than a list ends the channel
	// (https://www.rabbitmq.com/docs/sender-selected).
	HeaderCC  = "CC"
	HeaderBCC = "BCC"
	// HeaderUnreadable replaces a table of headers that this process could not read on arrival.
	HeaderUnreadable = HeaderPrefix + "unreadable"
	// HeaderDropped marks a message whose body this process discarded on arrival; see
	// [DroppedBody].
	HeaderDropped = HeaderPrefix + "dropped"
)

// The values of property type in requests of callers that follow this contract. The property
// takes a few bytes instead of a table of headers; tables cost an eighth of the throughput.
const (
	TypeRequest           = "rpc.v1"
	TypeIdempotentRequest = "rpc.v1.idempotent"
)

// typeError is the property type with which some libraries mark a failure.
const typeError = "error"

// DirectReplyTo is the pseudo-queue of direct reply-to, and the prefix of its addresses
// (https://www.rabbitmq.com/docs/direct-reply-to).
const DirectReplyTo = "amq.rabbitmq.reply-to"

// ReadableDepth and ReadableEntries bound the nesting and the entries of a received table of
// headers: amqp091-go can certainly read a table within these limits.
const (
	ReadableDepth   = 32
	ReadableEntries = 8192
)

const (
	// MaxShortString is the size limit of an AMQP short string in bytes: names, ids, keys.
	MaxShortString = 255
	// MaxHeaderBytes bounds application headers: a message's properties must fit in a single
	// frame, of 128 KiB by default, or the broker closes the connection.
	MaxHeaderBytes = 64 << 10
	// MaxHeaderDepth bounds the nesting of application headers.
	MaxHeaderDepth = 16
	// maxMessageHeader bounds the copy of an error's text in a header; the body has the whole
	// text.
	maxMessageHeader = 1 << 10
	// MaxBudget bounds a time budget, 49.7 days: RabbitMQ closes the channel of a sender whose
	// expiration exceeds 32 bits of milliseconds.
	MaxBudget = (1<<32 - 1) * time.Millisecond
)

// ErrTooLarge is the error of a request or a response that exceeds the size limit.
var ErrTooLarge = errors.New("message exceeds the size limit")

// FormatError is the error of a request that cannot be decoded. Its text is for the caller.
type FormatError struct{ text string }

// Error implements error.
func (e *FormatError) Error() string { return e.text }

func formatError(format string, args ...any) error {
	return &FormatError{text: fmt.Sprintf(format, args...)}
}

// WholeNumber decodes a header which peers in other languages encode as any integer type, or
// as text.
func WholeNumber(v any) (int64, bool) {
	switch n := v.(type) {
	case int8:
		return int64(n), true
	case uint8:
		return int64(n), true
	case int16:
		return int64(n), true
	case uint16:
		return int64(n), true
	case int32:
		return int64(n), true
	case uint32:
		return int64(n), true
	case int64:
		return n, true
	case uint64:
		return int64(min(n, math.MaxInt64)), true
	case int:
		return int64(n), true
	case string:
		i, err := strconv.ParseInt(n, 10, 64)
		return i, err == nil
	default:
		return 0, false
	}
}

// truth decodes a boolean header. Peers without any type but text send "true" or "false".
func truth(v any) (value, ok bool) {
	switch b := v.(type) {
	case bool:
		return b, true
	case string:
		switch {
		case strings.EqualFold(b, "true"):
			return true, true
		case strings.EqualFold(b, "false"):
			return false, true
		}
	}
	return false, false
}

// maxShown bounds the length of a header's value in an error.
const maxShown = 64

// describe formats a header's value for an error: text is quoted, a container is shown by its
// type, any other value by its type and value.
func describe(v any) string {
	switch t := v.(type) {
	case string:
		return strconv.Quote(Truncate(t, maxShown))
	case nil, []byte, []any, amqp.Table:
		return fmt.Sprintf("%T", v)
	default:
		return fmt.Sprintf("%T %v", v, v)
	}
}

// Truncate cuts text to at most n bytes of valid UTF-8.
func Truncate(text string, n int) string {
	if len(text) > n {
		text = text[:n]
	}
	return strings.ToValidUTF8(text, "")
}

// SetHeader sets a header of a message.
func SetHeader(msg *amqp.Publishing, name string, value any) {
	if msg.Headers == nil {
		msg.Headers = amqp.Table{}
	}
	msg.Headers[name] = value
}

// allFlat reports whether all header values are text or bytes, the types of headers in a batch.
func allFlat(header map[string]any) bool {
	for _, v := range header {
		switch v.(type) {
		case string, []byte:
		default:
			return false
		}
	}
	return true
}

// Common content types.
const (
	contentTypeJSON     = "application/json"
	contentTypeProtobuf = "application/protobuf"
	contentTypeOctets   = "application/octet-stream"
	contentTypePlain    = "text/plain"
)

// commonText returns a text as a string. Common content types and encodings, which every
// message of a method repeats, take no memory.
func commonText(b []byte) string {
	switch string(b) {
	case contentTypeJSON:
		return contentTypeJSON
	case contentTypeProtobuf:
		return contentTypeProtobuf
	case contentTypeOctets:
		return contentTypeOctets
	case contentTypePlain:
		return contentTypePlain
	case "gzip":
		return "gzip"
	default:
		return string(b)
	}
}

// CheckContent returns an error for a content type or encoding that cannot be sent.
func CheckContent(contentType, contentEncoding string) error {
	switch {
	case len(contentType) > MaxShortString || len(contentEncoding) > MaxShortString:
		return fmt.Errorf("content type of %d bytes, content encoding of %d: want at most %d", len(contentType), len(contentEncoding), MaxShortString)
	case IsBatch(contentType):
		return fmt.Errorf("content type %q is reserved for batches", contentType)
	default:
		return nil
	}
}

// duration decodes a header with a count of units; the result is between zero and MaxBudget,
// and zero for a value other than a whole number.
func duration(v any, unit time.Duration) time.Duration {
	n, ok := WholeNumber(v)
	if !ok {
		return 0
	}
	return time.Duration(min(max(n, 0), int64(MaxBudget/unit))) * unit
}

// Expiration returns the value of property expiration for a remaining time.
func Expiration(budget time.Duration) string {
	if budget == NoBudget {
		return ""
	}
	return strconv.FormatInt(Milliseconds(min(budget, MaxBudget)), 10)
}

// UnsampledTimestamp is the value of property timestamp that marks a request as not sampled: the
// beginning of 1970. A mark in a header would cost a table of headers, and RabbitMQ 4 changes the
// text of expiration.
func UnsampledTimestamp() time.Time { return time.Unix(0, 0) }

// IsUnsampledTimestamp reports whether a property timestamp marks a request as not sampled. A
// message without the property has the zero time, which is another.
func IsUnsampledTimestamp(t time.Time) bool { return t.Unix() == 0 }

// Milliseconds rounds up, so that a remainder below a millisecond does not become zero.
func Milliseconds(d time.Duration) int64 {
	return int64((d + time.Millisecond - 1) / time.Millisecond)
}

// CheckHeader refuses application headers that the broker or the codec would not accept, and
// reserved names.
func CheckHeader(h map[string]any) error {
	for name := range h {
		switch {
		case strings.HasPrefix(name, HeaderPrefix):
			return fmt.Errorf("header %q: names with %q are reserved", name, HeaderPrefix)
		case name == HeaderCC, name == HeaderBCC:
			return fmt.Errorf("header %q: the broker would route the message by it", name)
		}
	}
	return CheckTable(h)
}

// CheckTrailer refuses trailers that cannot be sent. A prefix is put before their names, so no name
// is reserved.
func CheckTrailer(trailer map[string]any) error {
	for name := range trailer {
		if len(name) == 0 || len(name) > MaxShortString-len(HeaderTrailer) {
			return fmt.Errorf("trailer name of %d bytes: want 1 to %d", len(name), MaxShortString-len(HeaderTrailer))
		}
	}
	return CheckTable(trailer)
}

// CheckTable refuses headers that cannot be sent.
func CheckTable(h amqp.Table) error {
	if err := h.Validate(); err != nil {
		return fmt.Errorf("header: %w", err)
	}
	n, err := headerSize(h, 0)
	if err != nil {
		return fmt.Errorf("header: %w", err)
	}
	if n > MaxHeaderBytes {
		return fmt.Errorf("headers of about %d bytes: want at most %d", n, MaxHeaderBytes)
	}
	return nil
}

// HeaderSize returns an upper bound of the encoded size of headers, or an error for headers
// that cannot be sent.
func HeaderSize(h map[string]any) (int, error) { return headerSize(amqp.Table(h), 0) }

// headerSize returns an upper bound of the encoded size of a header. It refuses values that
// the codec's own Validate accepts: names over the size limit, which would end the connection,
// numbers that the codec would truncate, and nesting deeper than MaxHeaderDepth.
func headerSize(v any, depth int) (size int, err error) {
	const perValue = 16 // a type octet and the largest fixed-size value
	if depth > MaxHeaderDepth {
		return 0, fmt.Errorf("nested deeper than %d", MaxHeaderDepth)
	}
	size = perValue
	switch t := v.(type) {
	case int:
		if int64(t) != int64(int32(t)) { //nolint:gosec // that it may not fit is what is checked.
			return 0, fmt.Errorf("int %d is sent as 32 bits: use int64", t)
		}
	case float32:
		return size, finite(float64(t))
	case float64:
		return size, finite(t)
	case string:
		size += len(t)
	case []byte:
		size += len(t)
	case amqp.Table:
		for name, e := range t {
			if len(name) > MaxShortString {
				return 0, fmt.Errorf("name of %d bytes: want at most %d", len(name), MaxShortString)
			}
			n, err := headerSize(e, depth+1)
			if err != nil {
				return 0, err
			}
			size += 1 + len(name) + n
		}
	case []any:
		for _, e := range t {
			n, err := headerSize(e, depth+1)
			if err != nil {
				return 0, err
			}
			size += n
		}
	}
	return size, nil
}

// finite refuses numbers that RabbitMQ cannot read: it would close the sender's connection.
func finite(x float64) error {
	if math.IsInf(x, 0) || math.IsNaN(x) {
		return fmt.Errorf("%v is not a number that RabbitMQ reads", x)
	}
	return nil
}

// ApplicationHeader returns the headers in h without the reserved names, or nil if none
// remain.
func ApplicationHeader(h amqp.Table) map[string]any {
	var own map[string]any
	for name, v := range h {
		if strings.HasPrefix(name, HeaderPrefix) {
			continue
		}
		if own == nil {
			own = make(map[string]any, len(h))
		}
		own[name] = receivedValue(v)
	}
	return own
}

// DeliveryMode returns the value of property delivery_mode.
func DeliveryMode(persistent bool) uint8 {
	if persistent {
		return amqp.Persistent
	}
	return amqp.Transient
}

// EncodeHeader returns application headers with values of AMQP's types, or an error with the
// name and the type of a header that cannot be sent. Without any change it returns h itself;
// containers are always copied.
func EncodeHeader(h map[string]any) (map[string]any, error) {
	if len(h) == 0 { // a range over it costs as much as the rest of a request's checks
		return h, nil
	}
	own := h
	copied := false
	for name, v := range h {
		value, changed, err := sentValue(v, 1)
		if err != nil {
			return nil, fmt.Errorf("header %q: %w", name, err)
		}
		if !changed {
			continue
		}
		if !copied {
			own, copied = maps.Clone(h), true
		}
		own[name] = value
	}
	return own, nil
}

// sentValue converts v to a type that amqp091-go writes, and reports whether the result
// differs from v.
func sentValue(v any, depth int) (value any, changed bool, err error) {
	if depth > MaxHeaderDepth {
		return nil, false, fmt.Errorf("nested deeper than %d", MaxHeaderDepth)
	}
	switch t := v.(type) {
	case nil, bool, string, []byte, int8, uint8, int16, uint16, int32, uint32, int64, float32, float64, amqp.Decimal, time.Time:
		return v, false, nil
	case int:
		if t == int(int32(t)) { //nolint:gosec // that it may not fit is what is checked.
			return v, false, nil
		}
		return int64(t), true, nil
	case time.Duration:
		return nil, false, fmt.Errorf("a time.Duration has no unit in a header: send its Milliseconds() or its String()")
	case map[string]any:
		value, err = sentTable(t, depth)
	case amqp.Table:
		value, err = sentTable(t, depth)
	case []any:
		value, err = sentArray(reflect.ValueOf(t), depth)
	default:
		value, err = reflectedValue(reflect.ValueOf(v), depth)
	}
	return value, true, err
}

// reflectedValue is sentValue for types other than Go's own, such as []string, or a type with
// underlying type string.
func reflectedValue(v reflect.Value, depth int) (any, error) {
	switch v.Kind() {
	case reflect.Bool:
		return v.Bool(), nil
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		return v.Int(), nil
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		n := v.Uint()
		if n > math.MaxInt64 {
			return nil, fmt.Errorf("%v %d is more than the largest whole number, %d", v.Type(), n, int64(math.MaxInt64))
		}
		return int64(n), nil
	case reflect.Float32, reflect.Float64:
		return v.Float(), nil
	case reflect.String:
		return v.String(), nil
	case reflect.Slice, reflect.Array:
		if v.Kind() == reflect.Slice && v.Type().Elem().Kind() == reflect.Uint8 {
			return v.Bytes(), nil
		}
		return sentArray(v, depth)
	case reflect.Map:
		if v.Type().Key().Kind() != reflect.String {
			break
		}
		table := make(map[string]any, v.Len())
		for entries := v.MapRange(); entries.Next(); {
			table[entries.Key().String()] = entries.Value().Interface()
		}
		return sentTable(table, depth)
	default:
	}
	return nil, fmt.Errorf("a value of type %v cannot be sent", v.Type())
}

// sentTable converts m to a table.
func sentTable(m map[string]any, depth int) (amqp.Table, error) {
	table := make(amqp.Table, len(m))
	for name, v := range m {
		value, _, err := sentValue(v, depth+1)
		if err != nil {
			return nil, fmt.Errorf("in %q: %w", name, err)
		}
		table[name] = value
	}
	return table, nil
}

// sentArray converts a slice or an array to an array.
func sentArray(v reflect.Value, depth int) ([]any, error) {
	array := make([]any, v.Len())
	for i := range array {
		value, _, err := sentValue(v.Index(i).Interface(), depth+1)
		if err != nil {
			return nil, fmt.Errorf("in element %d: %w", i, err)
		}
		array[i] = value
	}
	return array, nil
}

// receivedValue converts the value of a received header for applications: a table becomes
// map[string]any, at any depth. The message itself is not changed.
func receivedValue(v any) any {
	switch t := v.(type) {
	case amqp.Table:
		m := make(map[string]any, len(t))
		for name, e := range t {
			m[name] = receivedValue(e)
		}
		return m
	case []any:
		array := make([]any, len(t))
		for i, e := range t {
			array[i] = receivedValue(e)
		}
		return array
	default:
		return v
	}
}

// SafeReplyTo reports whether a response may be published to this reply_to. RabbitMQ does not
// validate a routing key of direct reply-to: a key of any other origin than RabbitMQ ends the
// publishing connection with an internal error, and the request is redelivered. A single bad
// request would thus stop every server for good.
func SafeReplyTo(replyTo string) bool {
	address, direct := strings.CutPrefix(replyTo, DirectReplyTo)
	if !direct || address == "" {
		return true // a queue, or the bare name of the pseudo-queue, which routes nowhere
	}
	process, key, whole := strings.Cut(strings.TrimPrefix(address, "."), ".")
	if !strings.HasPrefix(address, ".") || !whole || key == "" || strings.Contains(key, ".") {
		return false
	}
	term, err := base64.StdEncoding.DecodeString(process)
	return err == nil && isProcessID(term)
}

// isProcessID reports whether b is an Erlang process id in the external term format
// (https://www.erlang.org/doc/apps/erts/erl_ext_dist.html).
func isProcessID(b []byte) bool {
	const (
		version           = 131
		pid, newPID       = 103, 88
		atom, smallAtom   = 100, 115
		utf8, smallUTF8   = 118, 119
		fixed, fixedShort = 12, 9 // id, serial and creation
		tags              = 3
	)
	if len(b) < tags+1 || b[0] != version {
		return false
	}
	rest := fixed
	switch b[1] {
	case newPID:
	case pid:
		rest = fixedShort
	default:
		return false
	}
	var name int
	switch tag, length := b[2], b[tags:]; tag {
	case smallAtom, smallUTF8:
		name = 1 + int(length[0])
	case atom, utf8:
		if len(length) < 2 {
			return false
		}
		name = 2 + int(length[0])<<8 + int(length[1])
	default:
		return false
	}
	return len(b) == tags+name+rest
}
