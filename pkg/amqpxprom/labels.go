package amqpxprom

import (
	"strings"

	"github.com/prometheus/client_golang/prometheus"

	"rabbitmq-rpc/pkg/amqpx"
)

const (
	// labelOK is the code of a successful call.
	labelOK = "ok"
	// labelOther is the method of calls with names beyond a client's limit.
	labelOther = "other"
	// labelUnknown is the method of requests whose method the server does not have.
	labelUnknown = "unknown"
)

// text replaces invalid UTF-8 in s. An invalid label value would fail the scrape of the whole
// process.
func text(s string) string { return strings.ToValidUTF8(s, "\uFFFD") }

// codeText returns the label of a code. Labels are a closed set, even if a caller puts an
// invalid code into an error.
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
