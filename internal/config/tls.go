package config

import (
	"slices"
	"strings"
	"unicode"
)

// checkTLS checks the certificate files and the name of the broker. Without these settings,
// amqps URLs use the library's default, which trusts the system's certificates.
func (a *AMQP) checkTLS(faults *Faults) {
	const ca, cert, key, name = "AMQP_TLS_CA_FILE", "AMQP_TLS_CERT_FILE", "AMQP_TLS_KEY_FILE", "AMQP_TLS_SERVER_NAME"
	given := make([]string, 0, 4)
	for _, f := range []struct{ name, value string }{{ca, a.TLSCAFile}, {cert, a.TLSCertFile}, {key, a.TLSKeyFile}, {name, a.TLSServerName}} {
		if f.value != "" {
			given = append(given, f.name)
		}
	}
	if len(given) == 0 {
		return
	}
	if !slices.ContainsFunc(strings.Split(a.URL.Reveal(), ","), isTLS) {
		faults.Addf(given[0], "is set, but no broker URL begins with amqps://")
	}
	if strings.ContainsFunc(a.TLSServerName, isNotOfName) {
		faults.Addf(name, "is not the name or the address of a host, without a port")
	}
	_, bad := a.files.readTLS()
	for _, fault := range bad {
		faults.Addf(fault.variable, "%v", fault.err)
	}
	switch {
	case a.TLSCertFile != "" && a.TLSKeyFile == "":
		faults.Addf(key, "is missing: AMQP_TLS_CERT_FILE is set")
	case a.TLSCertFile == "" && a.TLSKeyFile != "":
		faults.Addf(cert, "is missing: AMQP_TLS_KEY_FILE is set")
	}
}

// isNotOfName reports whether no host name and no IP address contains r. A colon is in IPv6
// addresses.
func isNotOfName(r rune) bool {
	return !unicode.IsLetter(r) && !unicode.IsDigit(r) && !strings.ContainsRune("-._:", r)
}

// isTLS reports whether a URL's scheme is amqps, in upper or lower case.
func isTLS(raw string) bool {
	scheme, _, _ := strings.Cut(strings.TrimSpace(raw), ":")
	return strings.EqualFold(scheme, "amqps")
}
