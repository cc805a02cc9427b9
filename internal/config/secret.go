package config

import (
	"strings"

	"rabbitmq-rpc/pkg/amqpx"
)

// Hidden replaces a text that is not shown.
const Hidden = "xxxxx"

// Secret is a comma-separated list of broker URLs, which contain passwords. When a Secret is
// printed, logged or encoded, only the scheme, user, host and port of each URL are shown, and
// no part of a list that [amqpx.ParseURLs] refuses; [Secret.Reveal] returns the whole text.
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

// GoString prevents %#v from printing the passwords.
func (s Secret) GoString() string { return "config.Secret(" + s.String() + ")" }

// MarshalText prevents encoders, such as zap's, from writing the passwords.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }
