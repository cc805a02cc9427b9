package amqpx

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"rabbitmq-rpc/pkg/amqpx/internal/publish"
	"rabbitmq-rpc/pkg/amqpx/internal/transport"
	"rabbitmq-rpc/pkg/amqpx/internal/wire"
	"rabbitmq-rpc/pkg/amqpx/internal/xsync"
)

// ExchangeAuto is the exchange name with which a client chooses the exchange itself
// ([WithExchange]).
const ExchangeAuto = "auto"

// WithExchange sets the exchange to which the client publishes requests; the routing key is the
// name of the request queue or of its batch queue. The default, "", is the broker's default
// exchange, over which a user can publish to every queue of the virtual host. Servers declare the
// durable direct exchange "<queue>.rpc" and bind these queues to it, so a user with write
// permission for only this exchange can call only this service.
//
// With a name the client uses no other exchange: while the exchange is missing, calls end like
// calls without a queue ([ErrUnroutable], [WaitForServer]). With [ExchangeAuto] the client uses
// "<queue>.rpc" if it exists at the start of a connection, and the default exchange otherwise. A
// queue that is not bound to the exchange counts as missing: servers of earlier versions do not
// bind their queue.
func WithExchange(name string) ClientOption {
	return clientOption(func(c *clientConfig) { c.exchange = name })
}

// validateExchange returns an error for a name which no request exchange can have.
func (c *clientConfig) validateExchange() error {
	switch {
	case len(c.exchange) > wire.MaxShortString:
		return fmt.Errorf("exchange name of %d bytes: want at most %d", len(c.exchange), wire.MaxShortString)
	case c.exchange == "amq.default":
		return errors.New(`exchange "amq.default": this is the name of the default exchange in permissions only; want ""`)
	default:
		return nil
	}
}

// requestRoute is where the client of a session publishes requests. It does not change.
type requestRoute struct {
	exchange string // "" is the default exchange
	missing  bool   // the exchange did not exist at the start of the session
}

// noQueue says that the broker has no queue for a key.
func (r *requestRoute) noQueue(key string) string {
	switch {
	case r == nil || r.exchange == "": // nil: there was no session
		return "no queue " + strconv.Quote(key)
	case r.missing:
		return "no exchange " + strconv.Quote(r.exchange)
	default:
		return fmt.Sprintf("no queue is bound to exchange %q with key %q", r.exchange, key)
	}
}

// chooseExchange chooses the exchange for the requests of a new session.
func (c *Client) chooseExchange(s *transport.Session) error {
	chosen := &requestRoute{exchange: c.cfg.exchange}
	if c.cfg.exchange == ExchangeAuto {
		chosen.exchange = c.cfg.queue.requestExchange()
	}
	if chosen.exchange != "" {
		switch err := transport.FindExchange(s.Sub, chosen.exchange); {
		case err == nil:
		case !transport.IsNotFound(err):
			return err
		case c.cfg.exchange == ExchangeAuto:
			chosen.exchange = ""
		default:
			chosen.missing = true
		}
	}
	s.Exchange = chosen.exchange
	c.route.requests.Store(chosen)
	return nil
}

// startPublishing starts to publish requests when the session is ready.
func (c *Client) startPublishing(s *transport.Session) {
	if !c.route.requests.Load().missing {
		publish.Start(s, c.route.outbox, len(c.route.shards), c.returned)
		return
	}
	s.Run(func() { c.awaitExchange(s) })
	c.route.outbox.Notify()
}

const (
	// exchangeLookMin and exchangeLookMax bound the pause between two looks for a missing
	// exchange: the broker logs an error for each.
	exchangeLookMin = 100 * time.Millisecond
	exchangeLookMax = 10 * time.Second
)

// errExchangeFound ends a session that began without the request exchange. The next session
// verifies the user at the exchange, which was not possible before.
var errExchangeFound error = &transport.KindError{Kind: FaultLocal, Cause: errors.New("the request exchange exists now")}

// awaitExchange looks for the missing exchange while calls want it, and ends the session when
// the exchange exists. Until then requests end as if the broker had returned them.
func (c *Client) awaitExchange(s *transport.Session) {
	pause := xsync.NewBackoff(exchangeLookMin, exchangeLookMax)
	next := time.Now()
	for {
		select {
		case <-c.route.outbox.Wake:
		case <-s.Done:
			return
		}
		for _, out := range c.route.outbox.Drain(nil) {
			if out.BeginSend(s.Generation) {
				out.OnResult(publish.Returned)
			}
		}
		if time.Now().Before(next) {
			continue
		}
		switch err := transport.FindExchange(s.Sub, s.Exchange); {
		case err == nil:
			s.Fail(errExchangeFound)
			return
		case !transport.IsNotFound(err):
			s.Fail(err)
			return
		}
		next = time.Now().Add(max(pause.NextBackOff(), exchangeLookMin))
	}
}

// nameReplyQueue names the reply queue after the user, so that permissions can reserve the
// reply queues of a user for this user. The name changes with the user, who may be another
// after the credentials have changed.
func (c *Client) nameReplyQueue(s *transport.Session) {
	user, now := "", c.replyUser.Load()
	if c.cfg.userID {
		if user = c.route.user.get(); user == "" { // not verified
			if now != nil {
				return
			}
			user = s.Target.User
		}
	}
	switch {
	case now == nil:
	case *now == user:
		return
	default:
		c.abandon(c.route.replyTo, nil)
		c.responsesLost, c.replyQueueAway = true, nil
	}
	c.replyUser.Store(&user)
	c.route.replyTo = c.newReplyQueueName()
}

// newReplyQueueName returns a new name for a reply queue of this client.
func (c *Client) newReplyQueueName() string {
	return c.cfg.queue.newReplyQueueName(*c.replyUser.Load())
}

// newReplyQueueName returns a name of a reply queue for a user, or without a user if user is ""
// or the name would be too long.
func (q Queue) newReplyQueueName(user string) string {
	prefix := q.Name + replyInfix
	if user != "" {
		if long := prefix + userInName(user) + "."; len(long)+len(someUUID) <= wire.MaxShortString {
			prefix = long
		}
	}
	return prefix + newID()
}

// replyInfix follows the request queue's name in the names of reply queues.
const replyInfix = ".reply."

// maxUserInName bounds the bytes of an encoded user in the name of a queue.
const maxUserInName = 64

// userInName encodes a user for the name of a queue: every byte other than an ASCII letter, a
// digit, "-" and "_" becomes "%" and two hexadecimal digits. If the result is longer than
// maxUserInName, it is replaced by "~" and the first half of the user's SHA-256 in hexadecimal
// digits. Different users have different encodings, and none contains a ".".
func userInName(user string) string {
	name := user
	for i := range len(user) {
		if !isPlainInName(user[i]) {
			name = percentEncoded(user)
			break
		}
	}
	if len(name) > maxUserInName {
		sum := sha256.Sum256([]byte(user))
		return "~" + hex.EncodeToString(sum[:len(sum)/2])
	}
	return name
}

func percentEncoded(user string) string {
	var b strings.Builder
	for i := range len(user) {
		if c := user[i]; isPlainInName(c) {
			b.WriteByte(c)
		} else {
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	return b.String()
}

func isPlainInName(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-' || c == '_'
}

// verifyUser verifies the user of a new session, if the client has an exchange to publish to.
func (c *Client) verifyUser(s *transport.Session) error {
	if !c.cfg.userID || c.route.requests.Load().missing {
		return nil
	}
	return transport.AtStep(transport.StepVerifyUser, "", c.route.user.verify(s, c.cfg.logger))
}
