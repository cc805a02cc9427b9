package config

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"rabbitmq-rpc/pkg/amqpx"
)

// brokerFiles holds the paths of the files with the URL and the certificates of the broker.
// Each attempt to connect reads the files again by name, so rotating a password or certificate
// needs no restart, and files may also be replaced through a symbolic link in their paths, as
// in volumes of Kubernetes.
// brokerFiles is safe for concurrent use.
type brokerFiles struct {
	url, ca, cert, key string // paths; empty: no such file
	serverName         string // the name to expect in the broker's certificate; empty: the URL's

	mu    sync.Mutex
	roots *x509.CertPool // the last valid certificates
	pair  *tls.Certificate
}

// fileError is a fault of the file that a variable names.
type fileError struct {
	variable string
	err      error
}

func (f *fileError) Error() string { return f.variable + ": " + f.err.Error() }

// any reports whether any file, or the name of the broker, is set.
func (f *brokerFiles) any() bool { return f.url != "" || f.hasTLS() }

func (f *brokerFiles) hasTLS() bool {
	return f.ca != "" || f.cert != "" || f.key != "" || f.serverName != ""
}

// read is the source of [amqpx.WithBrokers]. If a file cannot be read, its last valid content
// stays in force, and the fault is part of the error.
func (f *brokerFiles) read() (amqpx.Brokers, error) {
	var now amqpx.Brokers
	var faults []error
	if f.url != "" {
		list, fault := readURLs(f.url)
		if fault != nil {
			faults = append(faults, fault)
		}
		now.URLs = list
	}
	if f.hasTLS() {
		config, fault := f.readTLS()
		now.TLS = config
		for _, one := range fault {
			faults = append(faults, one)
		}
	}
	return now, errors.Join(faults...)
}

// readURLs returns the list of URLs in a file, or "" and the fault.
func readURLs(path string) (string, error) {
	const variable = "AMQP_URL_FILE"
	content, err := ReadFile(path)
	list := strings.TrimSpace(string(content))
	switch {
	case err != nil:
	case list == "":
		err = fmt.Errorf("%s is empty", path)
	default:
		_, err = amqpx.ParseURLs(list)
	}
	if err != nil {
		return "", &fileError{variable, err}
	}
	return list, nil
}

// readTLS returns a configuration from the current content of the files or, if a file cannot
// be read, from its last valid content. While files are replaced one after the other, the
// certificate and the key may not match for a moment: then the last valid pair stays in force.
func (f *brokerFiles) readTLS() (*tls.Config, []*fileError) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var faults []*fileError
	if f.ca != "" {
		roots, err := readRoots(f.ca)
		if err != nil {
			faults = append(faults, &fileError{"AMQP_TLS_CA_FILE", err})
		} else {
			f.roots = roots
		}
	}
	if f.cert != "" && f.key != "" {
		pair, fault := readPair(f.cert, f.key)
		faults = append(faults, fault...)
		if pair != nil {
			f.pair = pair
		}
	}
	config := &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: f.roots, ServerName: f.serverName}
	if f.pair != nil {
		config.Certificates = []tls.Certificate{*f.pair}
	}
	return config, faults
}

func readRoots(path string) (*x509.CertPool, error) {
	text, err := ReadFile(path)
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(text) {
		return nil, fmt.Errorf("%s holds no PEM certificate", path)
	}
	return roots, nil
}

// readPair reports the faulty file, as far as it is known.
func readPair(certPath, keyPath string) (*tls.Certificate, []*fileError) {
	const cert, key = "AMQP_TLS_CERT_FILE", "AMQP_TLS_KEY_FILE"
	var faults []*fileError
	certPEM, err := ReadFile(certPath)
	if err != nil {
		faults = append(faults, &fileError{cert, err})
	}
	keyPEM, err := ReadFile(keyPath)
	if err != nil {
		faults = append(faults, &fileError{key, err})
	}
	if faults != nil {
		return nil, faults
	}
	pair, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		return nil, []*fileError{{cert, fmt.Errorf("%s with the key %s: %w", certPath, keyPath, err)}}
	}
	return &pair, nil
}

// certificateEnd returns the earliest end of the certificates in the file, or, if the file
// cannot be read, the end of the last valid certificate. It returns false if neither exists.
func (f *brokerFiles) certificateEnd() (time.Time, bool) {
	if f.cert == "" {
		return time.Time{}, false
	}
	text, err := ReadFile(f.cert)
	if err == nil {
		if end, ok := firstEnd(text); ok {
			return end, true
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.pair == nil || f.pair.Leaf == nil {
		return time.Time{}, false
	}
	return f.pair.Leaf.NotAfter, true
}

// firstEnd returns the earliest end of the certificates in a PEM file.
func firstEnd(text []byte) (end time.Time, ok bool) {
	for {
		var block *pem.Block
		if block, text = pem.Decode(text); block == nil {
			return end, ok
		}
		certificate, err := x509.ParseCertificate(block.Bytes)
		if block.Type != "CERTIFICATE" || err != nil {
			continue
		}
		if !ok || certificate.NotAfter.Before(end) {
			end, ok = certificate.NotAfter, true
		}
	}
}
