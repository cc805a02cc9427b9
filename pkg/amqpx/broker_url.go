package amqpx

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"unicode"
	"unicode/utf8"

	amqp "github.com/rabbitmq/amqp091-go"
	"go.uber.org/zap"

	"rabbitmq-rpc/pkg/amqpx/internal/transport"
)

// BrokerURL is the parsed URL of one broker ([ParseURLs]). Print, logs and encodings show only
// scheme, user, host and port.
type BrokerURL struct {
	scheme, user, host string
	port               int
	vhost              string  // in a form that may be shown
	hidden             *string // the virtual host if it must not be shown, else nil
	raw                *string // a pointer, because fmt prints the fields of unexported fields
}

// ParseURLs parses a list of broker URLs, separated by commas. It refuses URLs in which a part of
// the password would end up in another place, for example a password with a raw slash, lists in
// another format, and lists with both amqps and amqp. The error identifies each bad URL by
// position and never quotes any text of the list.
func ParseURLs(list string) ([]BrokerURL, error) {
	if strings.HasPrefix(list, "\uFEFF") {
		return nil, errors.New("the list begins with a byte order mark; save the file as UTF-8 without one")
	}
	if !utf8.ValidString(list) || strings.ContainsRune(list, 0) {
		return nil, errors.New("the list is no UTF-8 text")
	}
	var entries []string
	for entry := range strings.SplitSeq(list, ",") {
		if entry = strings.TrimSpace(entry); entry != "" {
			entries = append(entries, entry)
		}
	}
	if len(entries) == 0 {
		return nil, errNoURL
	}
	var faults []string
	urls := make([]BrokerURL, 0, len(entries))
	for i, entry := range entries {
		u, fault := parseURL(entry)
		if fault == faultScheme && len(entries) > 1 {
			fault += "; each broker of a list has a whole URL, as in " + listForm + ", and a comma in a password is written %2C"
		}
		if fault != "" {
			faults = append(faults, placeOf(i, len(entries))+" "+fault)
			continue
		}
		urls = append(urls, u)
	}
	if len(faults) == 0 {
		if fault := faultOfMix(urls); fault != "" {
			faults = append(faults, fault)
		}
	}
	if len(faults) > 0 {
		return nil, errors.New(strings.Join(faults, "; "))
	}
	return urls, nil
}

// faultOfMix refuses a list with and without TLS: an attacker that keeps the process from the
// brokers with TLS would get the password and the calls in clear text.
func faultOfMix(urls []BrokerURL) string {
	other := slices.IndexFunc(urls, func(u BrokerURL) bool { return u.TLS() != urls[0].TLS() })
	if other < 0 {
		return ""
	}
	return fmt.Sprintf("%s begins with %s:// and %s with %s://, so the password could travel without TLS; begin every URL with amqps://",
		placeOf(0, len(urls)), urls[0].scheme, placeOf(other, len(urls)), urls[other].scheme)
}

var errNoURL = errors.New("no broker URL")

// The forms of URLs in error texts.
const (
	urlForm  = "amqp://user:password@host:5672/vhost"                              //nolint:gosec // no password is in it
	listForm = "amqp://user:password@host1/vhost,amqp://user:password@host2/vhost" //nolint:gosec // nor here
)

const (
	faultScheme = "does not begin with amqp:// or amqps://"
	faultForm   = "is not of the form " + urlForm + ", with special characters of the password percent-encoded"
)

// placeOf returns the name of an entry of the list, for an error text.
func placeOf(i, of int) string {
	names := []string{"first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth"}
	switch {
	case of == 1:
		return "the URL"
	case i < len(names):
		return "the " + names[i] + " URL"
	default:
		return "URL " + strconv.Itoa(i+1)
	}
}

// parseURL parses one URL. A fault is the predicate of a sentence with the URL as its subject.
func parseURL(raw string) (_ BrokerURL, fault string) {
	if fault := faultOfText(raw); fault != "" {
		return BrokerURL{}, fault
	}
	_, rest, _ := strings.Cut(raw, "://")
	authority, tail := rest, ""
	if i := strings.IndexAny(rest, "/?"); i >= 0 {
		authority, tail = rest[:i], rest[i:]
	}
	path, query, _ := strings.Cut(tail, "?")
	faults := []string{faultOfTail(path, tail), faultOfAuthority(authority), faultOfQuery(query)}
	if i := slices.IndexFunc(faults, func(f string) bool { return f != "" }); i >= 0 {
		return BrokerURL{}, faults[i]
	}
	uri, err := amqp.ParseURI(raw)
	if err != nil {
		return BrokerURL{}, faultForm
	}
	u := BrokerURL{scheme: uri.Scheme, user: uri.Username, host: uri.Host, port: uri.Port, vhost: uri.Vhost, raw: &raw}
	if !mayShowVhost(uri.Vhost, authority) {
		u.vhost, u.hidden = "…", &uri.Vhost
	}
	return u, ""
}

// mayShowVhost reports whether a virtual host is certainly no part of a secret: it has no
// delimiter of a URL, and the password is in its own place.
func mayShowVhost(vhost, authority string) bool {
	if vhost == "/" {
		return true
	}
	return strings.Contains(authority, "@") && !strings.ContainsAny(vhost, `@:;?#&=|"'`) && !strings.ContainsFunc(vhost, unicode.IsControl)
}

// faultOfText checks the text of a whole URL.
func faultOfText(raw string) string {
	lower := strings.ToLower(raw)
	switch {
	case strings.ContainsAny(raw[:1]+raw[len(raw)-1:], "\"'`"):
		return "is in quotes; leave them out"
	case strings.ContainsFunc(raw, func(r rune) bool { return unicode.IsSpace(r) || unicode.IsControl(r) }):
		return "holds a space or a line break; URLs are separated by commas, as in " + listForm + ", and a space in a password is written %20"
	case strings.Count(raw, "://") > 1:
		return "holds two URLs; separate them by commas, as in " + listForm
	case strings.ContainsAny(raw, ";|"):
		return "holds a ; or |; URLs are separated by commas, as in " + listForm + ", and in a password they are written %3B and %7C"
	case !strings.HasPrefix(lower, transport.SchemePlain+"://") && !strings.HasPrefix(lower, transport.SchemeTLS+"://"):
		return faultScheme
	case strings.Contains(raw, "#"):
		return "holds a #, which a password has as %23"
	default:
		return ""
	}
}

// faultOfTail checks the text after the host: an @ or a colon in it means that the password
// was cut off too early.
func faultOfTail(path, tail string) string {
	switch {
	case strings.Contains(tail, "@"):
		return "has an @ after a / or ?; in a password these are written %2F and %3F, and an @ in a virtual host %40"
	case strings.Contains(path, ":"):
		return "has a colon after the host; user and password stand before it, as in " + urlForm + ", and a colon in a virtual host is written %3A"
	default:
		return ""
	}
}

func faultOfAuthority(authority string) string {
	address := authority
	if at := strings.LastIndex(authority, "@"); at >= 0 {
		_, password, _ := strings.Cut(authority[:at], ":")
		if password == "" {
			return "has a user without a password; want " + urlForm
		}
		address = authority[at+1:]
	}
	host := address
	if i := strings.LastIndex(address, ":"); i > strings.LastIndex(address, "]") {
		host = address[:i]
		n, err := strconv.ParseUint(address[i+1:], 10, 32)
		switch {
		case err != nil:
			return "has no number as its port; in a password / is written %2F, and an @ stands before the host, as in " + urlForm
		case n < 1 || n > 65535:
			return "has a port outside 1 to 65535"
		}
	}
	switch {
	case host == "":
		return "names no host"
	case !isHost(host):
		return "has a host that is none; want " + urlForm + ", with special characters of the password percent-encoded"
	default:
		return ""
	}
}

// isHost reports whether text is a name, an IPv4 address or an IPv6 address in brackets.
func isHost(text string) bool {
	if inner, ok := strings.CutPrefix(text, "["); ok {
		inner, closed := strings.CutSuffix(inner, "]")
		zoned, err := url.PathUnescape(inner)
		ip, parseErr := netip.ParseAddr(zoned)
		return closed && err == nil && parseErr == nil && ip.Is6()
	}
	return !strings.ContainsFunc(text, func(r rune) bool {
		return !unicode.IsLetter(r) && !unicode.IsDigit(r) && !strings.ContainsRune("-._", r)
	})
}

// faultOfQuery accepts the parameters that amqp091-go reads
// (https://www.rabbitmq.com/docs/uri-query-parameters). The library would ignore any other
// parameter silently, and its text may be a part of a password.
func faultOfQuery(query string) string {
	known := []string{
		"cacertfile", "certfile", "keyfile", "server_name_indication", "auth_mechanism", "heartbeat",
		"connection_timeout", "channel_max",
	}
	values, err := url.ParseQuery(query)
	if err != nil {
		return faultForm
	}
	for name := range values {
		if !slices.Contains(known, name) {
			return "has a query parameter that is none of " + strings.Join(known, ", ") + "; in a password ? is written %3F"
		}
	}
	return ""
}

// String returns scheme, user, host and port.
func (u BrokerURL) String() string {
	if u.raw == nil {
		return ""
	}
	shown := url.URL{Scheme: u.scheme, Host: u.Address()}
	if u.user != "" {
		shown.User = url.User(u.user)
	}
	return shown.String()
}

// GoString limits the output of %#v to the text of [BrokerURL.String].
func (u BrokerURL) GoString() string { return fmt.Sprintf("amqpx.BrokerURL(%s)", u) }

// MarshalText limits the output of encoders to the text of [BrokerURL.String].
func (u BrokerURL) MarshalText() ([]byte, error) { return []byte(u.String()), nil }

// Host returns the name or the address of the broker.
func (u BrokerURL) Host() string { return u.host }

// Port returns the port. The default is 5672 or, for amqps, 5671.
func (u BrokerURL) Port() int { return u.port }

// Address returns host:port.
func (u BrokerURL) Address() string { return net.JoinHostPort(u.host, strconv.Itoa(u.port)) }

// TLS reports whether the scheme is amqps.
func (u BrokerURL) TLS() bool { return u.scheme == transport.SchemeTLS }

// target returns the URL's data for a session.
func (u BrokerURL) target() transport.Target {
	return transport.Target{URL: *u.raw, Address: u.Address(), User: u.user, Vhost: u.vhost, Hidden: u.hidden, External: usesExternal(*u.raw)}
}

// usesExternal reports whether the broker takes the user from the client certificate (SASL
// EXTERNAL).
func usesExternal(raw string) bool {
	uri, err := amqp.ParseURI(raw)
	return err == nil && slices.ContainsFunc(uri.AuthMechanism, func(m string) bool { return strings.EqualFold(m, "external") })
}

func targetsOf(urls []BrokerURL) []transport.Target {
	targets := make([]transport.Target, len(urls))
	for i, u := range urls {
		targets[i] = u.target()
	}
	return targets
}

// Brokers has the addresses of the brokers and the TLS configuration at one moment. An empty
// field leaves the earlier value in force.
type Brokers struct {
	// URLs is a list of broker URLs in the format of [NewClient].
	URLs string
	// TLS is the configuration for amqps URLs, as for [WithTLS]. It must not be changed
	// afterwards.
	TLS *tls.Config
}

// WithBrokers sets a source of broker URLs and TLS configuration, which is called before each
// attempt to connect. A rotated password or certificate is therefore in use from the next
// attempt; open connections stay. By default the arguments of the constructor are used for
// ever. They must be valid in any case.
//
// The source must return soon and be safe for concurrent use, and its error must contain no
// secret. A result beside an error still counts. An empty field leaves the earlier value in
// force, and so does a list that [ParseURLs] refuses. Such a list, and an error of the source,
// are logged once until the fault changes.
func WithBrokers(source func() (Brokers, error)) ConnectionOption {
	return linkOption(func(c *linkConfig) {
		c.source = nil
		if source != nil {
			c.source = &brokerSource{ask: source}
		}
	})
}

// brokerSource holds the last valid results of the source of WithBrokers. Safe for concurrent
// use.
type brokerSource struct {
	ask func() (Brokers, error)
	log *zap.Logger

	mu     sync.Mutex
	list   string
	urls   []BrokerURL // parsed from list
	config *tls.Config // nil: the configuration of WithTLS
	told   string      // the last fault in the log
}

// start sets the initial values, from the arguments of the constructor.
func (b *brokerSource) start(list string, urls []BrokerURL, log *zap.Logger) {
	b.list, b.urls, b.log = list, urls, log
}

// refresh calls the source and returns the URLs in force.
func (b *brokerSource) refresh() []BrokerURL {
	urls, changed, fault := b.update(b.ask())
	if changed {
		b.log.Info("broker URLs changed", zap.Stringers("brokers", urls))
	}
	if fault != nil {
		b.log.Warn("how to reach the broker could not be read again, so it stays as it was", zap.Error(fault))
	}
	return urls
}

// update takes over a result of the source. It returns the URLs in force, whether they changed,
// and a fault that was not logged before.
func (b *brokerSource) update(now Brokers, fault error) (urls []BrokerURL, changed bool, _ error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if now.TLS != nil {
		b.config = now.TLS
	}
	if now.URLs != "" && now.URLs != b.list {
		urls, err := ParseURLs(now.URLs)
		if err == nil {
			b.list, b.urls, changed = now.URLs, urls, true
		} else if fault == nil {
			fault = err
		}
	}
	text := ""
	if fault != nil {
		text = fault.Error()
	}
	if text == b.told {
		fault = nil
	}
	b.told = text
	return b.urls, changed, fault
}

// tls returns the configuration in force, which is nil until the source returned one.
func (b *brokerSource) tls() *tls.Config {
	if b == nil {
		return nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.config
}
