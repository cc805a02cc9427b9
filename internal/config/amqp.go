package config

import (
	"crypto/tls"
	"fmt"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"go.uber.org/zap"

	"rabbitmq-rpc/internal/version"
	"rabbitmq-rpc/pkg/amqpx"
)

// AMQP is how both services reach the broker. It is a part of a
// service's settings.
type AMQP struct {
	// URL lists the broker's nodes, separated by commas. After Validate it holds
	// what URLFile gave, when that is set.
	URL Secret `envconfig:"AMQP_URL" default:"amqp://guest:guest@localhost:5672" empty:"ok"`
	// URLFile names a file that holds the URL, such as a mounted secret; it wins
	// over URL's default. Setting both is a fault.
	URLFile string `envconfig:"AMQP_URL_FILE" empty:"ok"`
	// TLSCAFile names a PEM file of the certificates to trust instead of the
	// system's.
	TLSCAFile string `envconfig:"AMQP_TLS_CA_FILE" empty:"ok"`
	// TLSCertFile and TLSKeyFile name the PEM files of the client's certificate.
	TLSCertFile string `envconfig:"AMQP_TLS_CERT_FILE" empty:"ok"`
	TLSKeyFile  string `envconfig:"AMQP_TLS_KEY_FILE" empty:"ok"`
	// Heartbeat is the interval asked for; the broker may lower it.
	Heartbeat time.Duration `envconfig:"AMQP_HEARTBEAT" default:"10s" min:"1s" max:"10m"`
	// DialTimeout bounds one attempt to connect and set up.
	DialTimeout time.Duration `envconfig:"AMQP_DIAL_TIMEOUT" default:"5s" min:"1ms" max:"10m"`
	// WriteTimeout bounds one write to the socket.
	WriteTimeout time.Duration `envconfig:"AMQP_WRITE_TIMEOUT" default:"10s" min:"1ms" max:"10m"`
	// BackoffMin and BackoffMax bound the wait between attempts to connect.
	BackoffMin time.Duration `envconfig:"AMQP_BACKOFF_MIN" default:"100ms" min:"1ms" max:"10m"`
	BackoffMax time.Duration `envconfig:"AMQP_BACKOFF_MAX" default:"10s" min:"1ms" max:"1h"`

	tls *tls.Config
}

// Validate resolves the URL, loads the TLS files and checks what spans variables.
func (a *AMQP) Validate(faults *Faults) {
	source := a.resolveURL(faults)
	urls := splitURLs(a.URL)
	if !faults.Has(source) {
		checkURLs(source, urls, faults)
	}
	a.loadTLS(urls, faults)
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
	}
	if a.tls != nil {
		options = append(options, amqpx.WithTLS(a.tls))
	}
	return options
}

// resolveURL puts what URLFile holds into URL and returns the variable that the
// URL came from.
func (a *AMQP) resolveURL(faults *Faults) string {
	const env, file = "AMQP_URL", "AMQP_URL_FILE"
	given := os.Getenv(env) != ""
	switch {
	case a.URLFile == "" && a.URL == "":
		faults.Addf(env, "is empty; unset it for the default or give it a value")
		return env
	case a.URLFile == "":
		return env
	case given:
		faults.Addf(file, "is set together with AMQP_URL; set only one of them")
		return file
	}
	content, err := ReadFile(a.URLFile)
	if err != nil {
		faults.Addf(file, "%v", err)
		return file
	}
	a.URL = Secret(strings.TrimSpace(string(content)))
	if a.URL == "" {
		faults.Addf(file, "%s is empty", a.URLFile)
	}
	return file
}

// splitURLs leaves out empty entries, as a trailing comma makes them.
func splitURLs(list Secret) []string {
	var urls []string
	for u := range strings.SplitSeq(list.Reveal(), ",") {
		if u = strings.TrimSpace(u); u != "" {
			urls = append(urls, u)
		}
	}
	return urls
}

// checkURLs names a bad URL by its place: its text may hold a password.
func checkURLs(source string, urls []string, faults *Faults) {
	if len(urls) == 0 {
		faults.Addf(source, "holds no URL")
	}
	var complaints []string
	for i, raw := range urls {
		if complaint := checkURL(raw); complaint != "" {
			complaints = append(complaints, fmt.Sprintf("URL %d of %d %s", i+1, len(urls), complaint))
		}
	}
	if len(complaints) > 0 {
		faults.Addf(source, "%s", strings.Join(complaints, "; "))
	}
}

func checkURL(raw string) string {
	u, err := url.Parse(raw)
	if err != nil {
		return "is not a URL such as amqp://user:password@host:5672/vhost" +
			" (special characters of a password must be percent-encoded)"
	}
	port, portErr := strconv.ParseUint(u.Port(), 10, 16)
	switch {
	case u.Scheme != "amqp" && u.Scheme != "amqps":
		return "must begin with amqp:// or amqps://"
	case u.Hostname() == "":
		return "names no host"
	case u.Port() != "" && (portErr != nil || port == 0):
		return "has a port outside 1 to 65535"
	default:
		return ""
	}
}
