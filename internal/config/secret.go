package config

import (
	"strings"

	"rabbitmq-rpc/pkg/amqpx"
)

// Hidden stands for a text that is not shown.
const Hidden = "xxxxx"

// Secret is a comma-separated list of broker URLs, which hold passwords. However it is
// printed, logged or encoded, only the scheme, user, host and port of each URL show, and
// nothing of a list that [amqpx.ParseURLs] refuses; [Secret.Reveal] gives all of it.
type Secret string

// Reveal returns the text with its passwords.
func (s Secret) Reveal() string { return string(s) }

// String returns the text without its passwords.
func (s Secret) String() string {
	if strings.TrimSpace(string(s)) == "" {
		return ""
	}
	urls, err := amqpx.ParseURLs(string(s))
	if err != nil {
		return Hidden
	}
	shown := make([]string, len(urls))
	for i, u := range urls {
		shown[i] = u.String()
	}
	return strings.Join(shown, ",")
}

// GoString keeps %#v from printing the passwords.
func (s Secret) GoString() string { return "config.Secret(" + s.String() + ")" }

// MarshalText keeps encoders, zap's among them, from writing the passwords.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }
