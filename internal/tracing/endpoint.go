package tracing

import (
	"net/url"
	"regexp"
	"strconv"
	"strings"

	"rabbitmq-rpc/internal/config"
)

// Endpoint is a collector's URL. When an Endpoint is printed, logged or encoded, only the
// scheme, host and port are shown, because user, path and query may contain a token.
type Endpoint string

// String returns the scheme, host and port.
func (e Endpoint) String() string {
	raw := trim(string(e))
	if raw == "" {
		return ""
	}
	u, err := url.Parse(raw)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return config.Hidden
	}
	return u.Scheme + "://" + u.Host
}

// GoString prevents %#v from printing more than String.
func (e Endpoint) GoString() string { return "tracing.Endpoint(" + e.String() + ")" }

// MarshalText prevents encoders from writing more than String.
func (e Endpoint) MarshalText() ([]byte, error) { return []byte(e.String()), nil }

// Attributes holds the value of OTEL_RESOURCE_ATTRIBUTES: key=value, separated by commas. When
// Attributes are printed, only their number is shown.
type Attributes string

// String returns the number of attributes.
func (a Attributes) String() string { return countOf(string(a), "attribute") }

// GoString prevents %#v from printing the attributes.
func (a Attributes) GoString() string { return "tracing.Attributes(" + a.String() + ")" }

// MarshalText prevents encoders from writing the attributes.
func (a Attributes) MarshalText() ([]byte, error) { return []byte(a.String()), nil }

// countOf returns the number of pairs in a list, in words. Names are not shown, because a
// value with an unescaped comma looks like a name.
func countOf(list, what string) string {
	if trim(list) == "" {
		return ""
	}
	n := strings.Count(list, ",") + 1
	if n > 1 {
		what += "s"
	}
	return strconv.Itoa(n) + " " + what
}

// urlInText matches a URL inside a text, such as an exporter's error.
var urlInText = regexp.MustCompile(`(?i)\bhttps?://[^\s"'<>]+`)

// withoutSecrets reduces the URLs in a text to scheme and host, and replaces the secrets.
func withoutSecrets(text string, secrets []string) string {
	text = urlInText.ReplaceAllStringFunc(text, func(found string) string {
		u, err := url.Parse(strings.TrimRight(found, ":,.;)"))
		if err != nil {
			return config.Hidden
		}
		return u.Scheme + "://" + u.Host
	})
	for _, secret := range secrets {
		text = strings.ReplaceAll(text, secret, config.Hidden)
	}
	return text
}

// secrets returns the values of the headers, both encoded and decoded.
func (h Headers) secrets() []string {
	const least = 4 // shorter values occur in any text
	var found []string
	for pair := range strings.SplitSeq(string(h), ",") {
		_, value, _ := strings.Cut(pair, "=")
		value = trim(value)
		plain, err := url.PathUnescape(value)
		if err != nil {
			plain = value
		}
		for _, text := range append([]string{value, plain}, strings.Fields(plain)...) {
			if len(text) >= least {
				found = append(found, text)
			}
		}
	}
	return found
}
