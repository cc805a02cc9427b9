package transport

import (
	"net"
	"strconv"
	"strings"
)

// Target is a broker's URL, with its parts in a form that may be shown.
type Target struct {
	URL      string // with the password: only for dialing
	Address  string
	User     string
	Vhost    string  // in a form that may be shown
	Hidden   *string // the virtual host if it must not be shown, else nil
	External bool    // the broker takes the user from the client certificate
}

// wrongLogin returns the likely kind of a refused login; the broker never gives the reason.
func (t Target) wrongLogin() FaultKind {
	switch {
	case t.External:
		return FaultCertificateUser
	case t.User == "guest" && !t.isLoopback():
		return FaultGuest
	default:
		return FaultCredentials
	}
}

// isLoopback reports whether the broker is on this machine.
func (t Target) isLoopback() bool {
	host, _, err := net.SplitHostPort(t.Address)
	if err != nil {
		return false
	}
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// redact returns err without the virtual host in its text, if the virtual host must not be
// shown: for an unknown virtual host the broker's error quotes the name.
func (t Target) redact(err error) error {
	if t.Hidden == nil || err == nil {
		return err
	}
	return &redactedError{error: err, hidden: *t.Hidden}
}

// redactedError is an error whose text does not show the virtual host.
type redactedError struct {
	error

	hidden string
}

func (e *redactedError) Error() string {
	quoted := strconv.Quote(e.hidden) // the form in the text of an amqp.Error
	return strings.NewReplacer(quoted[1:len(quoted)-1], "…", e.hidden, "…").Replace(e.error.Error())
}

func (e *redactedError) Unwrap() error { return e.error }
