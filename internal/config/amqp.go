package config

import (
	"errors"
	"os"
	"time"

	"go.uber.org/zap"

	"rabbitmq-rpc/internal/version"
	"rabbitmq-rpc/pkg/amqpx"
)

// AMQP holds the settings of the connection to the broker, which both services have. It is a
// part of a service's settings.
type AMQP struct {
	// URL lists the URLs of the broker's nodes, separated by commas. If URLFile is set,
	// Validate sets URL to the content of the file.
	URL Secret `envconfig:"AMQP_URL" default:"amqp://guest:guest@localhost:5672" empty:"ok" url:"ok"`
	// URLFile is the path of a file that contains the URL, such as a mounted secret; it
	// overrides URL's default. Setting both variables is a fault. This file and the TLS files
	// are read again for each attempt to connect.
	URLFile string `envconfig:"AMQP_URL_FILE" empty:"ok"`
	// TLSCAFile is the path of a PEM file of the certificates to trust instead of the
	// system's.
	TLSCAFile string `envconfig:"AMQP_TLS_CA_FILE" empty:"ok"`
	// TLSCertFile and TLSKeyFile are the paths of the PEM files of the client's certificate.
	TLSCertFile string `envconfig:"AMQP_TLS_CERT_FILE" empty:"ok"`
	TLSKeyFile  string `envconfig:"AMQP_TLS_KEY_FILE" empty:"ok"`
	// TLSServerName is the name to expect in the broker's certificate, instead of the URL's
	// host.
	TLSServerName string `envconfig:"AMQP_TLS_SERVER_NAME" empty:"ok"`
	// Heartbeat is the requested interval; the broker may lower it.
	Heartbeat time.Duration `envconfig:"AMQP_HEARTBEAT" default:"10s" min:"1s" max:"10m"`
	// DialTimeout limits one attempt to connect, including the setup.
	DialTimeout time.Duration `envconfig:"AMQP_DIAL_TIMEOUT" default:"5s" min:"1ms" max:"10m"`
	// WriteTimeout limits one write to the socket.
	WriteTimeout time.Duration `envconfig:"AMQP_WRITE_TIMEOUT" default:"10s" min:"1ms" max:"10m"`
	// BackoffMin and BackoffMax are the bounds of the wait between attempts to connect.
	BackoffMin time.Duration `envconfig:"AMQP_BACKOFF_MIN" default:"100ms" min:"1ms" max:"10m"`
	BackoffMax time.Duration `envconfig:"AMQP_BACKOFF_MAX" default:"10s" min:"1ms" max:"1h"`
	// ReturnHome is the mean time after which a process returns to the node that it lost; 0: never.
	ReturnHome time.Duration `envconfig:"AMQP_RETURN_HOME" default:"5m" min:"0s" max:"24h"`

	files *brokerFiles // set by Validate
}

// Validate resolves the URL, checks the TLS files and the rules that involve several
// variables.
func (a *AMQP) Validate(faults *Faults) {
	a.files = &brokerFiles{url: a.URLFile, ca: a.TLSCAFile, cert: a.TLSCertFile, key: a.TLSKeyFile, serverName: a.TLSServerName}
	a.resolveURL(faults)
	a.checkTLS(faults)
	if a.BackoffMax < a.BackoffMin && !faults.Has("AMQP_BACKOFF_MIN") {
		faults.Addf("AMQP_BACKOFF_MAX", "%v is less than AMQP_BACKOFF_MIN, %v", a.BackoffMax, a.BackoffMin)
	}
}

// Options returns the library's options for these settings.
func (a *AMQP) Options(name string, logger *zap.Logger) []amqpx.Option {
	options := []amqpx.Option{
		amqpx.WithName(name),
		amqpx.WithVersion(version.Of().Version),
		amqpx.WithLogger(logger),
		amqpx.WithHeartbeat(a.Heartbeat),
		amqpx.WithDialTimeout(a.DialTimeout),
		amqpx.WithWriteTimeout(a.WriteTimeout),
		amqpx.WithBackoff(a.BackoffMin, a.BackoffMax),
		amqpx.WithReturnHome(a.ReturnHome),
	}
	if a.files != nil && a.files.any() {
		options = append(options, amqpx.WithBrokers(a.files.read))
	}
	return options
}

// CertificateEnd returns the end of the client's certificate, read from its file now, or false
// if there is no certificate.
func (a *AMQP) CertificateEnd() (time.Time, bool) {
	if a.files == nil {
		return time.Time{}, false
	}
	return a.files.certificateEnd()
}

// resolveURL checks the URL, or replaces it with the content of URLFile.
func (a *AMQP) resolveURL(faults *Faults) {
	const env, file = "AMQP_URL", "AMQP_URL_FILE"
	given := os.Getenv(env) != ""
	switch {
	case faults.Has(file):
		return
	case a.URLFile == "" && a.URL == "":
		faults.Addf(env, "is empty; unset it for the default or give it a value")
		return
	case a.URLFile == "":
		if _, err := amqpx.ParseURLs(a.URL.Reveal()); err != nil {
			faults.Addf(env, "%v", err)
		}
		return
	case given:
		faults.Addf(file, "is set together with AMQP_URL; set only one of them")
		return
	}
	list, err := readURLs(a.URLFile)
	if fault, ok := errors.AsType[*fileError](err); ok {
		faults.Addf(file, "%v", fault.err)
		return
	}
	a.URL = Secret(list)
}
