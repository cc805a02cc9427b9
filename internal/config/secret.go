package config

import (
	"net/url"
	"strings"
)

// Secret is a comma-separated list of URLs that may hold passwords. However it is
// printed, logged or encoded, the passwords are replaced by "xxxxx"; [Secret.Reveal]
// gives them away.
type Secret string

// Reveal returns the text with its passwords.
func (s Secret) Reveal() string { return string(s) }

// String returns the text without its passwords.
func (s Secret) String() string {
	parts := strings.Split(string(s), ",")
	for i, p := range parts {
		parts[i] = redact(strings.TrimSpace(p))
	}
	return strings.Join(parts, ",")
}

// GoString keeps %#v from printing the passwords.
func (s Secret) GoString() string { return "config.Secret(" + s.String() + ")" }

// MarshalText keeps encoders, zap's among them, from writing the passwords.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// redact hides the password of one URL, and all of what it cannot tell apart.
func redact(raw string) string {
	u, err := url.Parse(raw)
	switch {
	case raw == "":
		return ""
	case err != nil || u.Host == "":
		return "xxxxx"
	default:
		return u.Redacted()
	}
}
