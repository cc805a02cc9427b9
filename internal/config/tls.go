package config

import (
	"slices"
	"strings"
)

// checkTLS checks the certificate files. Without certificate files, amqps URLs use the
// library's default, which trusts the system's certificates.
func (a *AMQP) checkTLS(faults *Faults) {
	const ca, cert, key = "AMQP_TLS_CA_FILE", "AMQP_TLS_CERT_FILE", "AMQP_TLS_KEY_FILE"
	given := make([]string, 0, 3)
	for _, f := range []struct{ name, path string }{{ca, a.TLSCAFile}, {cert, a.TLSCertFile}, {key, a.TLSKeyFile}} {
		if f.path != "" {
			given = append(given, f.name)
		}
	}
	if len(given) == 0 {
		return
	}
	if !slices.ContainsFunc(strings.Split(a.URL.Reveal(), ","), isTLS) {
		faults.Addf(given[0], "is set, but no broker URL begins with amqps://")
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

// isTLS reports whether a URL's scheme is amqps, in upper or lower case.
func isTLS(raw string) bool {
	scheme, _, _ := strings.Cut(strings.TrimSpace(raw), ":")
	return strings.EqualFold(scheme, "amqps")
}
