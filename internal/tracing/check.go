package tracing

import (
	"crypto/x509"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"unicode/utf8"

	"rabbitmq-rpc/internal/config"
)

// isWord reports whether a value is one of the words, in upper or lower case.
func isWord(value string, words ...string) bool {
	return slices.Contains(words, strings.ToLower(trim(value)))
}

// notOneOf returns the fault of a value that is none of the words.
func notOneOf(value string, words ...string) string {
	return config.QuoteWord(value, words...) + " is not one of: " + strings.Join(words, ", ")
}

// checkEndpoint accepts the URLs that the exporters for HTTP and for gRPC interpret in the
// same way. Faults never quote the URL, which may contain a password.
func checkEndpoint(faults *config.Faults, name string, endpoint Endpoint) {
	raw := trim(string(endpoint))
	if raw == "" {
		return
	}
	u, err := url.Parse(raw)
	switch {
	case err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "":
		faults.Addf(name, "is not a URL such as http://collector:4318 or https://collector:4318")
	case u.User != nil:
		faults.Addf(name, "holds a user name or password, which exporters leave out; put them into OTEL_EXPORTER_OTLP_HEADERS")
	case u.RawQuery != "" || u.Fragment != "":
		faults.Addf(name, "has a query or a fragment, which exporters leave out")
	}
}

// checkCertificate accepts a file of certificates if the endpoint uses TLS.
func checkCertificate(faults *config.Faults, name, path, endpoint string) {
	if path = trim(path); path == "" {
		return
	}
	pem, err := config.ReadFile(path)
	switch {
	case err != nil:
		faults.Addf(name, "%v", err)
	case !x509.NewCertPool().AppendCertsFromPEM(pem):
		faults.Addf(name, "%s holds no PEM certificate", path)
	case strings.HasPrefix(endpoint, "http:"):
		faults.Addf(name, "is set, but the endpoint does not begin with https://")
	}
}

// faultOfAttributes checks pairs whose values are percent-encoded. Invalid UTF-8 would make
// every export fail. A fault names a pair by its position, because its text may be a secret.
func faultOfAttributes(pairs string) string {
	if trim(pairs) == "" {
		return ""
	}
	place := 0
	for pair := range strings.SplitSeq(pairs, ",") {
		place++
		key, value, ok := strings.Cut(pair, "=")
		plain, err := url.PathUnescape(trim(value))
		switch {
		case !ok || err != nil || trim(key) == "":
			return fmt.Sprintf("attribute %d is not key=value, with special characters percent-encoded", place)
		case !utf8.ValidString(key + plain):
			return fmt.Sprintf("attribute %d is no UTF-8", place)
		}
	}
	return ""
}
