package amqpx

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

// The wire contract, version 1, which docs/protocol.md specifies for programs in
// other languages. This file and its two neighbours are the only place that knows
// it, and they do no I/O.

// Header names. Everything with the prefix is reserved.
const (
	headerPrefix     = "rpc-"
	headerTimeout    = headerPrefix + "timeout-ms"
	headerIdempotent = headerPrefix + "idempotent"
	headerMethod     = headerPrefix + "method"
	headerCode       = headerPrefix + "code"
	headerMessage    = headerPrefix + "message"
	headerRan        = headerPrefix + "ran"
	headerRetryAfter = headerPrefix + "retry-after-ms"
	headerQueueTime  = headerPrefix + "queue-us"
	headerHandler    = headerPrefix + "handler-us"
	headerResent     = headerPrefix + "resent"
	headerRetry      = headerPrefix + "retry"
	headerServer     = headerPrefix + "server"
	headerTimes      = headerPrefix + "times"
	headerDeliveries = headerPrefix + "deliveries"
	headerDeadReason = headerPrefix + "dead-reason"
	headerDeadQueue  = headerPrefix + "dead-queue"
	headerDeadTime   = headerPrefix + "dead-time"
	// headerCC and headerBCC name further queues, to which the broker routes a copy; a
	// value other than a list ends the channel (https://www.rabbitmq.com/docs/sender-selected).
	headerCC  = "CC"
	headerBCC = "BCC"
	// headerUnreadable stands for headers that could not be read; see frameReader.
	headerUnreadable = headerPrefix + "unreadable"
	// headerDropped stands for a body that was not read; see contentLimits.
	headerDropped = headerPrefix + "dropped"
)

// The type property of requests whose callers follow this contract. It says in a few
// bytes what would take a table of headers, and tables cost an eighth of the throughput.
const (
	typeCall           = "rpc.v1"
	typeIdempotentCall = "rpc.v1.idempotent"
)

const (
	// maxShortString is the longest AMQP short string: names, ids, keys.
	maxShortString = 255
	// maxHeaderBytes bounds application headers: a message's properties must fit in
	// one frame, of 128 KiB by default, or the broker closes the connection.
	maxHeaderBytes = 64 << 10
	// maxHeaderDepth bounds how deep application headers nest.
	maxHeaderDepth = 16
	// maxMessageHeader bounds the copy of an error's text in a header; the body has
	// all of it.
	maxMessageHeader = 1 << 10
	// maxBudget bounds a time budget, 49.7 days: RabbitMQ closes the channel of
	// whoever sends an expiration beyond 32 bits of milliseconds.
	maxBudget = (1<<32 - 1) * time.Millisecond
)

// wholeNumber reads a header that peers in other languages encode as any integer
// type, or as text.
func wholeNumber(v any) (int64, bool) {
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

// truth reads a header that is true or false, which peers that send only text write as
// text.
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

// maxShown bounds how much of a header's value an error shows.
const maxShown = 64

// describe shows a header's value in an error: the value itself when it is text, else its
// type, with the value of what is no container.
func describe(v any) string {
	switch t := v.(type) {
	case string:
		return strconv.Quote(truncate(t, maxShown))
	case nil, []byte, []any, amqp.Table:
		return fmt.Sprintf("%T", v)
	default:
		return fmt.Sprintf("%T %v", v, v)
	}
}

// duration reads a header that counts units, between zero and maxBudget. What is no whole
// number is zero.
func duration(v any, unit time.Duration) time.Duration {
	n, ok := wholeNumber(v)
	if !ok {
		return 0
	}
	return time.Duration(min(max(n, 0), int64(maxBudget/unit))) * unit
}

// milliseconds rounds up, so that a rest of a millisecond is not no time at all.
func milliseconds(d time.Duration) int64 {
	return int64((d + time.Millisecond - 1) / time.Millisecond)
}

// checkHeader refuses application headers that the broker, or the codec, would not
// take, or that this package reserves.
func checkHeader(h map[string]any) error {
	for name := range h {
		switch {
		case strings.HasPrefix(name, headerPrefix):
			return fmt.Errorf("header %q: names with %q are reserved", name, headerPrefix)
		case name == headerCC, name == headerBCC:
			return fmt.Errorf("header %q: the broker would route the message by it", name)
		}
	}
	return checkTable(h)
}

// checkTable refuses headers that cannot be sent.
func checkTable(h amqp.Table) error {
	if err := h.Validate(); err != nil {
		return fmt.Errorf("header: %w", err)
	}
	n, err := headerSize(h, 0)
	if err != nil {
		return fmt.Errorf("header: %w", err)
	}
	if n > maxHeaderBytes {
		return fmt.Errorf("headers of about %d bytes: want at most %d", n, maxHeaderBytes)
	}
	return nil
}

// headerSize estimates the encoded size of a header, at least as large as it is, and
// refuses what the codec's own Validate lets through: names that do not fit, which
// would end the link, numbers that it cuts off, and nesting beyond any use.
func headerSize(v any, depth int) (size int, err error) {
	const perValue = 16 // a type octet and the largest fixed-size value
	if depth > maxHeaderDepth {
		return 0, fmt.Errorf("nested deeper than %d", maxHeaderDepth)
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
			if len(name) > maxShortString {
				return 0, fmt.Errorf("name of %d bytes: want at most %d", len(name), maxShortString)
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

// finite refuses what RabbitMQ cannot read: it closes the connection of the sender.
func finite(x float64) error {
	if math.IsInf(x, 0) || math.IsNaN(x) {
		return fmt.Errorf("%v is not a number that RabbitMQ reads", x)
	}
	return nil
}

// applicationHeader returns what is not ours out of h, or nil when nothing is.
func applicationHeader(h amqp.Table) map[string]any {
	var own map[string]any
	for name, v := range h {
		if strings.HasPrefix(name, headerPrefix) {
			continue
		}
		if own == nil {
			own = make(map[string]any, len(h))
		}
		own[name] = receivedValue(v)
	}
	return own
}

func deliveryMode(persistent bool) uint8 {
	if persistent {
		return amqp.Persistent
	}
	return amqp.Transient
}
