package config

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"os"
	"slices"
	"strings"
)

// loadTLS reads the certificate files. Without any of them, amqps URLs use the
// library's default, which trusts the system's certificates.
func (a *AMQP) loadTLS(urls []string, faults *Faults) {
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
	if len(urls) > 0 && !slices.ContainsFunc(urls, isTLS) {
		faults.Addf(given[0], "is set, but no broker URL begins with amqps://")
	}
	a.tls = &tls.Config{MinVersion: tls.VersionTLS12}
	if a.TLSCAFile != "" {
		a.tls.RootCAs = loadCA(ca, a.TLSCAFile, faults)
	}
	switch {
	case a.TLSCertFile != "" && a.TLSKeyFile != "":
		a.tls.Certificates = loadPair(a.TLSCertFile, a.TLSKeyFile, faults)
	case a.TLSCertFile != "":
		faults.Addf(key, "is missing: AMQP_TLS_CERT_FILE is set")
	case a.TLSKeyFile != "":
		faults.Addf(cert, "is missing: AMQP_TLS_KEY_FILE is set")
	}
}

// isTLS reports whether a URL's scheme, which has no case, is amqps.
func isTLS(raw string) bool {
	scheme, _, _ := strings.Cut(raw, ":")
	return strings.EqualFold(scheme, "amqps")
}

func loadCA(name, path string, faults *Faults) *x509.CertPool {
	pem, err := ReadFile(path)
	if err != nil {
		faults.Addf(name, "%v", err)
		return nil
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		faults.Addf(name, "%s holds no PEM certificate", path)
	}
	return pool
}

// loadPair blames the file that is at fault where it can tell.
func loadPair(certPath, keyPath string, faults *Faults) []tls.Certificate {
	const cert, key = "AMQP_TLS_CERT_FILE", "AMQP_TLS_KEY_FILE"
	certPEM, certErr := ReadFile(certPath)
	if certErr != nil {
		faults.Addf(cert, "%v", certErr)
	}
	keyPEM, keyErr := ReadFile(keyPath)
	if keyErr != nil {
		faults.Addf(key, "%v", keyErr)
	}
	if certErr != nil || keyErr != nil {
		return nil
	}
	pair, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		faults.Addf(cert, "%s with the key %s: %v", certPath, keyPath, err)
		return nil
	}
	return []tls.Certificate{pair}
}

// maxFile bounds the files that a setting names; certificates and URLs are far smaller.
const maxFile = 1 << 20

// ReadFile reads a file that the operator named. What is not an ordinary file could
// keep a service waiting, or have no end.
func ReadFile(path string) ([]byte, error) {
	info, err := os.Stat(path)
	switch {
	case err != nil:
		return nil, err
	case !info.Mode().IsRegular():
		return nil, fmt.Errorf("%s is not an ordinary file", path)
	case info.Size() > maxFile:
		return nil, fmt.Errorf("%s has %d bytes, at most %d are read", path, info.Size(), maxFile)
	}
	return os.ReadFile(path) //nolint:gosec // the operator names the file, to be read
}
