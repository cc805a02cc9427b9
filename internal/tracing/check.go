package tracing

import (
	"crypto/x509"
	"net/url"
	"slices"
	"strings"
	"unicode/utf8"

	"rabbitmq-rpc/internal/config"
)

// oneOf takes a word that is empty or in the list.
func oneOf(faults *config.Faults, name, word string, words ...string) {
	if word = trim(word); word != "" && !slices.Contains(words, word) {
		faults.Addf(name, "%q is not one of: %s", cut(word), strings.Join(words, ", "))
	}
}

// checkEndpoint takes what the exporters for HTTP and for gRPC understand alike. It never
// quotes the URL: it may hold a password.
func checkEndpoint(faults *config.Faults, name string, endpoint config.Secret) {
	raw := trim(endpoint.Reveal())
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

// checkCertificate takes a file of certificates, for an endpoint that shows one.
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

// checkAttributes takes pairs whose values are percent-encoded. What is no UTF-8 would make
// every export fail.
func checkAttributes(faults *config.Faults, name, pairs string) {
	for pair := range strings.SplitSeq(trim(pairs), ",") {
		key, value, ok := strings.Cut(pair, "=")
		plain, err := url.PathUnescape(trim(value))
		switch {
		case trim(pairs) == "":
		case !ok || err != nil || trim(key) == "":
			faults.Addf(name, "%q is not key=value, with special characters percent-encoded", cut(pair))
		case !utf8.ValidString(key + plain):
			faults.Addf(name, "%q is no UTF-8", cut(pair))
		}
	}
}

// cut bounds what a fault quotes.
func cut(s string) string {
	const most = 60
	if len(s) > most {
		return s[:most] + "…"
	}
	return s
}
