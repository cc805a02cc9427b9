package amqpx

import (
	"encoding/base64"
	"strings"
)

// safeReplyTo reports whether an answer may be published to a reply_to. RabbitMQ
// decodes a routing key of direct reply-to without care: one that it did not make
// itself ends the publishing connection with an internal error, the request comes
// back, and so one bad request would stop every server for good.
func safeReplyTo(replyTo string) bool {
	address, direct := strings.CutPrefix(replyTo, directReplyTo)
	if !direct || address == "" {
		return true // a queue, or the pseudo-queue's bare name, which routes nowhere
	}
	process, key, whole := strings.Cut(strings.TrimPrefix(address, "."), ".")
	if !strings.HasPrefix(address, ".") || !whole || key == "" || strings.Contains(key, ".") {
		return false
	}
	term, err := base64.StdEncoding.DecodeString(process)
	return err == nil && isProcessID(term)
}

// isProcessID reports whether b is one Erlang process id in the external term
// format (https://www.erlang.org/doc/apps/erts/erl_ext_dist.html).
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
