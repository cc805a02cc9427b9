package amqpx

import (
	"context"
	"fmt"
	"time"

	"rabbitmq-rpc/pkg/amqpx/internal/transport"
)

// Credentials are the name and the password of a broker's user. In print, logs and encodings
// they show only the name and the end.
type Credentials struct {
	// User is the name of the user; empty: the name in the URL. With OAuth 2 the broker takes
	// the name from the token and ignores this one.
	User string
	// Password is the password, or a token of OAuth 2.
	Password string
	// Expires is the end of the password by this machine's clock; zero: no end.
	Expires time.Time
}

// String returns the name of the user and the end of the password.
func (c Credentials) String() string {
	if c.Expires.IsZero() {
		return fmt.Sprintf("user %q", c.User)
	}
	return fmt.Sprintf("user %q until %s", c.User, c.Expires.Format(time.RFC3339))
}

// GoString limits the output of %#v to the text of [Credentials.String].
func (c Credentials) GoString() string { return "amqpx.Credentials(" + c.String() + ")" }

// MarshalText limits the output of encoders to the text of [Credentials.String].
func (c Credentials) MarshalText() ([]byte, error) { return []byte(c.String()), nil }

// WithCredentials sets a source of the user and the password, instead of those in the URLs. The
// source is asked before each attempt to connect to a broker, once for all connections of the
// attempt; an error is the fault [FaultCredentialsSource], and another attempt follows.
//
// Credentials with an end are refreshed: after 80 % of the remaining time the source is asked
// again, and open connections get the new password (connection.update-secret), as RabbitMQ
// requires for tokens of OAuth 2 (https://www.rabbitmq.com/docs/oauth2#token-expiration). If the
// source fails, or returns the same password with no later end, the fault is logged, and the
// source is asked again with growing pauses up to the second duration of [WithBackoff]. If the
// broker ends the connections meanwhile, the next attempt to connect asks the source.
// Credentials of another user apply to the next attempt only.
//
// The source must return soon after the end of its context and be safe for concurrent use, and
// its error must contain no secret. The context ends after the time of [WithDialTimeout] at the
// latest. URLs with auth_mechanism=external take no credentials.
func WithCredentials(source func(ctx context.Context) (Credentials, error)) ConnectionOption {
	return linkOption(func(c *linkConfig) { c.credentials = source })
}

// credentialsSource returns the source of WithCredentials for package transport, or nil.
func (c *linkConfig) credentialsSource() func(context.Context) (transport.Credentials, error) {
	if c.credentials == nil {
		return nil
	}
	return func(ctx context.Context) (transport.Credentials, error) {
		got, err := c.credentials(ctx)
		return transport.Credentials(got), err
	}
}
