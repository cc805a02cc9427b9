package tracing

import (
	"net/url"
	"strings"

	"rabbitmq-rpc/internal/config"
)

// Headers are HTTP headers for the collector: key=value, separated by commas. When Headers are
// printed, logged or encoded, only their number is shown, because the values contain tokens.
type Headers string

// String returns the number of headers.
func (h Headers) String() string { return countOf(string(h), "header") }

// GoString prevents %#v from printing the values.
func (h Headers) GoString() string { return "tracing.Headers(" + h.String() + ")" }

// MarshalText prevents encoders, such as zap's, from writing the values.
func (h Headers) MarshalText() ([]byte, error) { return []byte(h.String()), nil }

// check accepts only pairs that the exporters can parse. The exporters would drop an invalid
// pair and print its text.
func (h Headers) check(faults *config.Faults, name string) {
	if trim(string(h)) == "" {
		return
	}
	place := 0
	for pair := range strings.SplitSeq(string(h), ",") {
		place++
		key, value, ok := strings.Cut(pair, "=")
		_, err := url.PathUnescape(value)
		if !ok || err != nil || !isToken(trim(key)) {
			faults.Addf(name, "header %d is not key=value, with special characters of the value percent-encoded", place)
		}
	}
}

// isToken reports whether s is a valid name of a header (RFC 9110, 5.6.2).
func isToken(s string) bool {
	return s != "" && !strings.ContainsFunc(s, func(r rune) bool {
		letter := r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9'
		return !letter && !strings.ContainsRune("!#$%&'*+-.^_`|~", r)
	})
}
