package amqpx

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"

	amqp "github.com/rabbitmq/amqp091-go"
)

// The schemes of broker URLs, as amqp091-go's parser returns them: in lower case,
// however the URL was written.
const (
	schemePlain = "amqp"
	schemeTLS   = "amqps"
)

// plainURL returns url with the scheme amqp. amqp091-go then takes everything but the
// transport from the URL: the user, the virtual host, the SASL mechanisms and the query.
func plainURL(url string, uri amqp.URI) string { return schemePlain + url[len(uri.Scheme):] }

// handshake performs the TLS handshake on raw, and notes in own what becomes of the client
// certificate. It ends with ctx.
func (d netDialer) handshake(ctx context.Context, raw net.Conn, uri amqp.URI, own *clientCertificate) (net.Conn, error) {
	config, err := d.tlsConfig(uri)
	if err != nil {
		return nil, &kindError{FaultTLSFiles, err}
	}
	own.watch(config)
	conn := tls.Client(raw, config)
	if err := conn.HandshakeContext(ctx); err != nil {
		return nil, own.handshakeFault(err)
	}
	return conn, nil
}

// tlsConfig returns the TLS configuration for one connection: the one of WithBrokers,
// else of WithTLS or, if there is none, one made of the URL's query parameters cacertfile, certfile and keyfile.
// The name that the broker's certificate must have is the configuration's ServerName,
// else the query parameter server_name_indication, else the URL's host.
func (d netDialer) tlsConfig(uri amqp.URI) (config *tls.Config, err error) {
	given := d.tls
	if newer := d.source.tls(); newer != nil {
		given = newer
	}
	if given != nil {
		config = given.Clone()
	} else if config, err = tlsConfigOf(uri); err != nil {
		return nil, err
	}
	if config.ServerName == "" {
		config.ServerName = uri.ServerName
	}
	if config.ServerName == "" {
		config.ServerName = uri.Host
	}
	return config, nil
}

// tlsConfigOf reads the files that the URL's query names
// (https://www.rabbitmq.com/docs/uri-query-parameters).
func tlsConfigOf(uri amqp.URI) (*tls.Config, error) {
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	if uri.CACertFile != "" {
		pem, err := os.ReadFile(uri.CACertFile)
		if err != nil {
			return nil, fmt.Errorf("cacertfile of the broker URL: %w", withoutPath(err))
		}
		config.RootCAs = x509.NewCertPool()
		if !config.RootCAs.AppendCertsFromPEM(pem) {
			return nil, errors.New("cacertfile of the broker URL holds no PEM certificate")
		}
	}
	if uri.CertFile != "" && uri.KeyFile != "" {
		pair, err := tls.LoadX509KeyPair(uri.CertFile, uri.KeyFile)
		if err != nil {
			return nil, fmt.Errorf("certfile and keyfile of the broker URL: %w", withoutPath(err))
		}
		config.Certificates = []tls.Certificate{pair}
	}
	return config, nil
}

// withoutPath returns the cause of an error of a file without its name, which came from a
// URL and may be anything.
func withoutPath(err error) error {
	if failed, ok := errors.AsType[*fs.PathError](err); ok {
		return failed.Err
	}
	return err
}
