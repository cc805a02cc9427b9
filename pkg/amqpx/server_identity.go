package amqpx

import (
	"errors"
	"strings"
	"sync/atomic"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
	"go.uber.org/zap"
)

// Who called. The broker checks the user_id of a message against the user of the
// connection that it came through (https://www.rabbitmq.com/docs/validated-user-id), so it
// is an identity that nobody can forge; a message without it is anonymous, and tells its
// caller only by its reply_to.

// scopeKind says what the scope of a requestID is.
type scopeKind uint8

const (
	scopeUser        scopeKind = iota // the user_id; "" for an anonymous request
	scopeApplication                  // what WithDedupScope returned
)

// requestID identifies a request among those of one method.
type requestID struct {
	kind  scopeKind
	scope string
	// replyTo is empty for an id that is shared, and for one that is too long to be a
	// number of a program: such a request may come again with another reply_to, see
	// isSameRequest.
	replyTo string
	id      string
}

// identity is what a request is known by.
type identity struct {
	requestID

	// shared says that the id is an idempotency key of an identified caller: it means the
	// same request whatever the reply_to is.
	shared bool
}

// uniqueID is how long an id is at least, in bytes, to be taken for one that no two
// programs choose: the length of a UUID's bytes. Programs that number their calls have
// shorter ones.
const uniqueID = 16

// key returns what a request is known by, or "". A correlation id is good for that
// only from callers that follow our contract: others may use it again.
func (in *incoming) key() string {
	if in.IdempotencyKey == "" && in.followsContract {
		return in.CorrelationID
	}
	return in.IdempotencyKey
}

// identity returns what a request is known by; false means that nothing tells whether another
// one repeats it. An idempotency key belongs to the user that made it. A correlation id,
// and the key of an anonymous caller, belongs to whoever has the reply_to; where there is
// none either, nobody can tell.
func (in *incoming) identity() (identity, bool) {
	id := identity{requestID{scope: in.User, id: in.key()}, in.IdempotencyKey != "" && in.User != ""}
	switch {
	case id.id == "", in.replyTo == "" && !id.shared:
		return id, false
	case !id.shared && len(id.id) < uniqueID:
		id.replyTo = in.replyTo
	}
	return id, true
}

// callKey identifies a call: who made it, and its correlation id.
type callKey struct{ user, replyTo, id string }

// newCallKey returns the key of a call. An address of direct reply-to is known to
// servers only, and changes with each connection, so it is left out where the id alone
// cannot be guessed. A one-way request has no reply_to, and no cancellation matches it.
func newCallKey(user, replyTo, id string) callKey {
	if len(id) >= uniqueID && strings.HasPrefix(replyTo, directReplyTo) {
		replyTo = directReplyTo
	}
	return callKey{user: user, replyTo: replyTo, id: id}
}

// callKey returns the key of a request's call.
func (in *incoming) callKey() callKey { return newCallKey(in.User, in.replyTo, in.CorrelationID) }

// headerUser names the caller of a request that a server has copied.
const headerUser = headerPrefix + "user"

// headerDeath is the broker's own mark of a message that it has dead-lettered
// (https://www.rabbitmq.com/docs/dlx).
const headerDeath = "x-death"

// callerOf returns the user that sent a message, or "". A copy that a server made has that
// server's user and names the caller in a header, which counts only from servers of this
// server's own user. The broker does not validate anew what it dead-letters, so the
// user_id of such a message proves nothing: whoever can bind a queue could have another's
// message routed here.
func (s *Server) callerOf(d *amqp.Delivery) string {
	if d.UserId == "" || !s.cfg.userID {
		return ""
	}
	if _, dead := d.Headers[headerDeath]; dead {
		return ""
	}
	if d.UserId == s.user.get() {
		if caller, copied := d.Headers[headerUser].(string); copied {
			return caller
		}
	}
	return d.UserId
}

// sign marks the copy of a request as this server's own, and as that of its caller. A dead
// letter only names the caller: whoever moves it back may be another user, whom the broker
// would refuse, and the request is anonymous then.
func (s *Server) sign(msg *amqp.Publishing, caller string) {
	delete(msg.Headers, headerUser)
	user := s.user.get()
	if user == "" {
		return
	}
	setHeader(msg, headerUser, caller)
	if _, dead := msg.Headers[headerDeadReason]; !dead {
		msg.UserId = user
	}
}

// brokerUser is the name by which the broker knows the user of a session. It goes into the
// user_id of messages, which the broker compares with the user of the connection
// (https://www.rabbitmq.com/docs/validated-user-id): one that differs ends the channel and
// leaves everything on it in doubt. With OAuth 2, LDAP or certificates the name is not the
// one in the URL, so it is tried first. The zero value has no name. Safe for concurrent use.
type brokerUser struct {
	name atomic.Pointer[string] // verified for the session that began last
	last string                 // verified in the session before; only verify uses it
}

// userWait bounds how long a session waits for its user's name: a broker that blocks
// publishing does not answer.
const userWait = time.Second

// get returns the name, or "" while none is verified.
func (u *brokerUser) get() string {
	if name := u.name.Load(); name != nil {
		return *name
	}
	return ""
}

// verify finds out the name for a session that is being set up, by messages to nobody on
// the channel of the probe, before anybody else uses that. The broker tells the name when
// it refuses another. Without a name the session's messages are anonymous.
func (u *brokerUser) verify(s *session, log *zap.Logger) error {
	if name := u.name.Swap(nil); name != nil {
		u.last = *name
	}
	name := s.target.user
	if u.last != "" {
		name = u.last
	}
	limit := time.NewTimer(userWait)
	defer limit.Stop()
	for range 2 {
		late, refused := u.try(s, name, limit.C)
		if refused == nil || late {
			return nil
		}
		if s.ended() {
			return refused
		}
		var err error
		if s.probeCh, err = s.pub.channel(); err != nil { // refused, it has ended
			return err
		}
		told := userIn(refused)
		if told == "" || told == name {
			log.Warn("the broker did not confirm the user: messages are anonymous", zap.String("user", name), zap.Error(refused))
			return nil
		}
		name = told
	}
	return nil
}

// try sends a message to nobody with a name as its user_id. It returns the broker's refusal,
// or that none has come so far: then the name is used from the moment that the broker
// answers.
func (u *brokerUser) try(s *session, name string, limit <-chan time.Time) (late bool, refused error) {
	ch, result := s.probeCh, make(chan error, 1)
	s.run(func() { // ends with the session at the latest
		err := ch.publishFanout("", amqp.Publishing{UserId: name, AppId: "user"})
		if err == nil {
			err = ch.barrier()
		}
		if err == nil {
			u.name.Store(&name)
		}
		result <- err
	})
	select {
	case err := <-result:
		return false, err
	case <-s.done:
		return false, errConnectionEnded
	case <-limit:
		return true, nil
	}
}

// userIn returns the user's name that the refusal of another one tells, or "".
func userIn(err error) string {
	refused, ok := errors.AsType[*amqp.Error](err)
	if !ok || refused.Code != amqp.PreconditionFailed {
		return ""
	}
	const before = "authenticated user was '"
	i := strings.LastIndex(refused.Reason, before)
	if i < 0 {
		return ""
	}
	return strings.TrimSuffix(refused.Reason[i+len(before):], "'")
}

// WithUserID chooses whether messages carry the user_id by which servers know their
// callers ([Request.User]), and whether servers believe it; the default is true. The name
// is tried once for each link; a broker that does not confirm it leaves messages
// anonymous. Switch it off where the broker does not validate the property.
func WithUserID(on bool) Option { return option(func(c *config) { c.userID = on }) }
