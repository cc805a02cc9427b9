package amqpxprom

import (
	"strings"

	"github.com/prometheus/client_golang/prometheus"

	"rabbitmq-rpc/pkg/amqpx"
)

const (
	// labelOK is the code of a call that was answered.
	labelOK = "ok"
	// labelOther is the method of calls by names beyond a client's limit.
	labelOther = "other"
	// labelUnknown is the method of requests that a server has no method for.
	labelUnknown = "unknown"
)

// text makes s the value of a label, which must be UTF-8: another would fail the scrape
// of the whole process.
func text(s string) string { return strings.ToValidUTF8(s, "\uFFFD") }

// codeText is the label of a code. Codes are a closed set, whatever a caller has put
// into an error.
func codeText(c amqpx.Code) string {
	switch {
	case c == "":
		return labelOK
	case c.Valid():
		return c.String()
	default:
		return amqpx.CodeUnknown.String()
	}
}

func queueLabel(queue string) prometheus.Labels { return prometheus.Labels{"queue": text(queue)} }
