package transport

import (
	"errors"
	"strings"

	amqp "github.com/rabbitmq/amqp091-go"
)

// certificateLogin is the login for an amqps URL without a user and without auth_mechanism: by
// the client certificate (SASL EXTERNAL) if the broker asked for a certificate and got one, else
// as guest with a password, which is the default of URLs. There is no fallback between the two
// logins, so that a fault names the intended login.
type certificateLogin struct {
	socket   *dialedSocket
	guest    amqp.PlainAuth
	external bool // the broker was asked for EXTERNAL
}

// loginOf returns the login for a URL; nil: amqp091-go chooses the login.
func loginOf(raw string, uri amqp.URI, socket *dialedSocket) *certificateLogin {
	if uri.Scheme != SchemeTLS || uri.AuthMechanism != nil || hasUser(raw) {
		return nil
	}
	return &certificateLogin{socket: socket, guest: amqp.PlainAuth{Username: uri.Username, Password: uri.Password}}
}

// hasUser reports whether a valid broker URL names a user.
func hasUser(raw string) bool {
	_, rest, _ := strings.Cut(raw, "://")
	if end := strings.IndexAny(rest, "/?"); end >= 0 {
		rest = rest[:end]
	}
	return strings.Contains(rest, "@")
}

// mechanisms returns the list for amqp.Config, which is nil without a login.
func (l *certificateLogin) mechanisms() []amqp.Authentication {
	if l == nil {
		return nil
	}
	return []amqp.Authentication{l}
}

// Mechanism implements amqp.Authentication. amqp091-go calls Mechanism after the TLS handshake.
func (l *certificateLogin) Mechanism() string {
	l.external = l.socket.get().certificate.offered.Load() != nil
	if l.external {
		return new(amqp.ExternalAuth).Mechanism()
	}
	return l.guest.Mechanism()
}

// Response implements amqp.Authentication.
func (l *certificateLogin) Response() string {
	if l.external {
		return new(amqp.ExternalAuth).Response()
	}
	return l.guest.Response()
}

// explain names the client certificate in the error of a refused login.
func (l *certificateLogin) explain(err error) error {
	refused, ok := errors.AsType[*amqp.Error](err)
	if l == nil || !l.external || !ok || !isRefusedLogin(refused) {
		return err
	}
	return &stepError{stepLogin, "", &KindError{Kind: FaultCertificateUser, Cause: refused}}
}

// isRefusedLogin reports whether the broker refused a user. If the broker closes the connection
// without a reason, amqp091-go reports ErrCredentials.
func isRefusedLogin(err *amqp.Error) bool {
	return err == amqp.ErrCredentials || err.Code == amqp.AccessRefused && strings.Contains(err.Reason, "Login was refused")
}
