package main

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"time"
)

const (
	// lifetime is how long new certificates last.
	lifetime = 365 * 24 * time.Hour
	// renewBefore is the time before their end at which certificates are replaced.
	renewBefore = 30 * 24 * time.Hour
	// clientName and brokerName are the common names of the certificates of the services and of
	// the broker, whose host names stand beside.
	clientName = "rabbitmq-rpc"
	brokerName = "rabbitmq-rpc broker"
)

// The files of each folder.
const (
	caFile   = "ca.pem"
	certFile = "cert.pem"
	keyFile  = "key.pem"
)

// lasts reports whether a folder has a certificate and its key, for all names, signed by the
// authority of the folder, and good until renewBefore from now.
func lasts(folder string, names []string) bool {
	pair, err := tls.LoadX509KeyPair(filepath.Join(folder, certFile), filepath.Join(folder, keyFile))
	if err != nil {
		return false
	}
	roots := x509.NewCertPool()
	text, err := os.ReadFile(filepath.Join(folder, caFile)) //nolint:gosec // the operator names the folder
	if err != nil || !roots.AppendCertsFromPEM(text) {
		return false
	}
	for _, name := range names {
		if pair.Leaf.VerifyHostname(name) != nil {
			return false
		}
	}
	_, err = pair.Leaf.Verify(x509.VerifyOptions{
		Roots: roots, CurrentTime: time.Now().Add(renewBefore), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	})
	return err == nil
}

// sameAuthority reports whether two folders trust the same authority.
func sameAuthority(one, other string) bool {
	a, errA := os.ReadFile(filepath.Join(one, caFile))   //nolint:gosec // the operator names the folder
	b, errB := os.ReadFile(filepath.Join(other, caFile)) //nolint:gosec // the operator names the folder
	return errA == nil && errB == nil && bytes.Equal(a, b)
}

// renew makes an authority and the certificates of the broker and of the services.
func renew(broker, services string, names []string) error {
	authority, err := newAuthority()
	if err != nil {
		return err
	}
	if err := authority.issue(broker, x509.ExtKeyUsageServerAuth, brokerName, names); err != nil {
		return err
	}
	return authority.issue(services, x509.ExtKeyUsageClientAuth, clientName, nil)
}

// authority signs certificates.
type authority struct {
	certificate *x509.Certificate
	key         *ecdsa.PrivateKey
}

func newAuthority() (*authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template := template(clientName + " authority")
	template.IsCA, template.BasicConstraintsValid, template.KeyUsage = true, true, x509.KeyUsageCertSign
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	certificate, err := x509.ParseCertificate(der)
	return &authority{certificate, key}, err
}

// template returns what all certificates have in common. They are valid from an hour ago, for
// machines whose clocks differ.
func template(name string) *x509.Certificate {
	const hour, bits = time.Hour, 127
	serial, _ := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), bits)) // crypto/rand never fails
	return &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-hour), NotAfter: time.Now().Add(lifetime),
	}
}

// issue writes the authority's certificate, and a new certificate with its key, into a folder.
func (a *authority) issue(folder string, use x509.ExtKeyUsage, name string, hosts []string) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	template := template(name)
	template.DNSNames, template.ExtKeyUsage, template.KeyUsage = hosts, []x509.ExtKeyUsage{use}, x509.KeyUsageDigitalSignature
	der, err := x509.CreateCertificate(rand.Reader, template, a.certificate, key.Public(), a.key)
	if err != nil {
		return err
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	for _, f := range []struct {
		name, kind string
		der        []byte
	}{{keyFile, "PRIVATE KEY", keyDER}, {certFile, "CERTIFICATE", der}, {caFile, "CERTIFICATE", a.certificate.Raw}} {
		if err := replace(filepath.Join(folder, f.name), pem.EncodeToMemory(&pem.Block{Type: f.kind, Bytes: f.der})); err != nil {
			return err
		}
	}
	return nil
}

// replace writes a file at once, under its name. Everyone may read it, the keys too: the broker
// and the services run as users that this program does not know, and each folder is a volume
// that only its readers mount.
func replace(path string, content []byte) error {
	const everyone = 0o644
	fresh := path + ".new"
	if err := os.WriteFile(fresh, content, everyone); err != nil { //nolint:gosec // see above
		return fmt.Errorf("certificates: %w", err)
	}
	if err := os.Rename(fresh, path); err != nil { //nolint:gosec // the operator names the folder
		return fmt.Errorf("certificates: %w", err)
	}
	return nil
}
