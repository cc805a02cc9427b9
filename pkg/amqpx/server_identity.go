package amqpx

import (
	"errors"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
	"go.uber.org/zap"

	"rabbitmq-rpc/pkg/amqpx/internal/transport"
	"rabbitmq-rpc/pkg/amqpx/internal/wire"
)

// Identity of callers. The broker checks the user_id of a message against the user of the
// publishing connection (https://www.rabbitmq.com/docs/validated-user-id), so a user_id cannot
// be forged. A message without user_id is anonymous: only its reply_to identifies the caller.

// scopeKind is the kind of a requestID's scope.
type scopeKind uint8

const (
	scopeUser        scopeKind = iota // the user_id; "" for an anonymous request
	scopeApplication                  // the result of the function of WithDedupScope
)

// requestID identifies a request among all requests for a method.
type requestID struct {
	kind  scopeKind
	scope string
	// ReplyTo is empty for a shared id, and for an id that is too long for a counter of a
	// program: such a request may be sent again with another reply_to, see isSameRequest.
	replyTo string
	id      string
}

// identity is the requestID by which duplicates of a request are found.
type identity struct {
	requestID

	// shared is true for an idempotency key of an identified caller: the key means the same
	// request with any reply_to.
	shared bool
}

// key returns the id of a request for deduplication, or "". A correlation id is used only if
// the caller follows the contract of this package: other callers may use a correlation id
// again.
func (in *incoming) key() string {
	if in.Key == "" && in.FollowsContract {
		return in.ID
	}
	return in.Key
}

// identity returns the identity of a request; false means that duplicates cannot be
// recognised. An idempotency key belongs to the user of the request. A correlation id, and the
// key of an anonymous caller, belong to the reply_to; without a reply_to the request has no
// identity.
func (in *incoming) identity() (identity, bool) {
	id := identity{requestID{scope: in.user, id: in.key()}, in.Key != "" && in.user != ""}
	switch {
	case id.id == "", in.ReplyTo == "" && !id.shared:
		return id, false
	case !id.shared && len(id.id) < wire.UniqueID:
		id.replyTo = in.ReplyTo
	}
	return id, true
}

// callKey identifies a call by its caller and its correlation id.
type callKey struct{ user, replyTo, id string }

// newCallKey returns the key of a call. An address of direct reply-to is known only to servers
// and changes with each connection, so it is not part of the key if the id cannot be guessed.
// A one-way request has no reply_to, and no cancellation matches it.
func newCallKey(user, replyTo, id string) callKey {
	if len(id) >= wire.UniqueID && strings.HasPrefix(replyTo, wire.DirectReplyTo) {
		replyTo = wire.DirectReplyTo
	}
	return callKey{user: user, replyTo: replyTo, id: id}
}

// callKey returns the key of the request's call.
func (in *incoming) callKey() callKey { return newCallKey(in.user, in.ReplyTo, in.ID) }

// WithTrustedUsers sets users of the broker, beside the server's own, whose messages may carry
// the properties that servers add to copies: the name of the caller ([Request.User]) and the
// count of lost deliveries ([WithDeliveryLimit]). Set the users of the queue's other servers if
// different, for example while the servers' user is replaced. Never set the user of a client:
// that client could name any caller. The default is none; [WithUserID] must be on.
func WithTrustedUsers(users ...string) ServerOption {
	return serverOption(func(c *serverConfig) { c.trustedUsers = users })
}

// trustedUsersFault returns an error for trusted users without effect.
func (c *serverConfig) trustedUsersFault() error {
	switch {
	case slices.Contains(c.trustedUsers, ""):
		return errors.New("trusted users: a name is empty")
	case len(c.trustedUsers) > 0 && !c.userID:
		return errors.New("trusted users: WithUserID is off, so no message has a user")
	default:
		return nil
	}
}

// trusts reports whether a user's messages may be copies by a server.
func (s *Server) trusts(user string) bool {
	return user != "" && (user == s.user.get() || slices.Contains(s.cfg.trustedUsers, user))
}

// trustsCount reports whether the count of lost deliveries in a message counts: only servers
// publish messages with their user, and only copies have the caller's header. Copies of
// dead-lettered requests keep the header x-death. The deliveries of a dead letter that was moved
// back are counted anew. A server that does not know its own user cannot tell a copy from a
// forgery, and trusts every other count: otherwise a request that kills servers would never reach
// the delivery limit.
func (s *Server) trustsCount(d *amqp.Delivery) bool {
	if isMovedBack(d) {
		return false
	}
	if !s.cfg.userID || s.user.get() == "" {
		return true
	}
	_, copied := d.Headers[wire.HeaderUser].(string)
	return copied && s.trusts(d.UserId)
}

// isMovedBack reports whether a message is a dead letter that was moved back to the request queue,
// and that no server has lost since: counted copies do not keep the header.
func isMovedBack(d *amqp.Delivery) bool {
	_, movedBack := d.Headers[wire.HeaderDeadTime]
	return movedBack
}

// callerOf returns the user who sent a message, or "". A copy by a server, and a dead letter that
// was moved back with a trusted user, has the server's user and names the caller in a header, which
// counts only if the message has a trusted user, such as this server's own. Without the header such
// a dead letter has no caller: the server that wrote it knew none. While this server does not know
// its own user, a copy cannot be told from a forgery, so a message with the header has no caller.
// The user_id of a message which the broker has dead-lettered proves nothing, because the broker
// does not validate such a message again: a user who can bind a queue could route another user's
// message to the server.
func (s *Server) callerOf(d *amqp.Delivery) string {
	if d.UserId == "" || !s.cfg.userID {
		return ""
	}
	if _, dead := d.Headers[wire.HeaderDeath]; dead {
		return ""
	}
	caller, copied := d.Headers[wire.HeaderUser].(string)
	switch {
	case (copied || isMovedBack(d)) && s.trusts(d.UserId):
		return caller
	case copied && s.user.get() == "":
		return ""
	default:
		return d.UserId
	}
}

// isOwnCopy reports whether a server of a trusted user republished a request.
func (s *Server) isOwnCopy(d *amqp.Delivery) bool {
	if !s.trusts(d.UserId) {
		return false
	}
	_, copied := d.Headers[wire.HeaderUser].(string)
	_, dead := d.Headers[wire.HeaderDeath]
	return copied && !dead
}

// sign sets this server's user and the caller in the copy of a request. In a copy for the dead
// letters only the caller is set: the broker would refuse a message with this server's user when
// another user moves the message back. The request is anonymous then; whoever moves it back with a
// trusted user as its user_id keeps the caller.
func (s *Server) sign(msg *amqp.Publishing, caller string, toDead bool) {
	delete(msg.Headers, wire.HeaderUser)
	user := s.user.get()
	if user == "" {
		return
	}
	wire.SetHeader(msg, wire.HeaderUser, caller)
	if !toDead {
		msg.UserId = user
	}
}

// brokerUser is the name under which the broker knows a session's user. The name is sent as
// user_id of messages, which the broker compares with the user of the connection
// (https://www.rabbitmq.com/docs/validated-user-id). A wrong name ends the channel, and the
// result of every message on the channel is unknown. With OAuth 2, LDAP or certificates the
// name differs from the user in the URL, so a session tests the name first. The zero value has
// no name. Safe for concurrent use.
type brokerUser struct {
	name atomic.Pointer[string] // verified in the current session
	last string                 // verified in the session before; used only by verify
	// strict means that a missing permission to publish is an error of verify: without the
	// permission, the first request would end the session.
	strict bool
}

// userWait bounds how long a session waits for the verification: a broker that blocks
// publishing does not respond.
const userWait = time.Second

// get returns the verified name, or "".
func (u *brokerUser) get() string {
	if name := u.name.Load(); name != nil {
		return *name
	}
	return ""
}

// verify determines the name for a new session. It publishes messages, which no queue
// receives, to the session's exchange, on the channel of the probe before the channel has other users. When the broker
// refuses a name, the error contains the correct name. Without a name the session's messages
// are anonymous.
func (u *brokerUser) verify(s *transport.Session, log *zap.Logger) error {
	if name := u.name.Swap(nil); name != nil {
		u.last = *name
	}
	name := s.Target.User
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
		if s.Ended() || u.strict && isNoPermission(refused) {
			return refused
		}
		var err error
		if s.ProbeCh, err = s.Pub.Channel(); err != nil { // the refusal has ended the channel
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

// try publishes a message with name as its user_id, which no queue receives. It returns the
// broker's refusal. If the broker does not respond before limit, late is true, and the name is
// used as soon as the broker accepts the message.
func (u *brokerUser) try(s *transport.Session, name string, limit <-chan time.Time) (late bool, refused error) {
	ch, result := s.ProbeCh, make(chan error, 1)
	s.Run(func() { // the goroutine ends with the session at the latest
		err := ch.PublishFanout(s.Exchange, amqp.Publishing{UserId: name, AppId: "user"})
		if err == nil {
			err = ch.Barrier()
		}
		if err == nil {
			u.name.Store(&name)
		}
		result <- err
	})
	select {
	case err := <-result:
		return false, err
	case <-s.Done:
		return false, transport.ErrConnectionEnded
	case <-limit:
		return true, nil
	}
}

// isNoPermission reports whether the broker refused access.
func isNoPermission(err error) bool {
	refused, ok := errors.AsType[*amqp.Error](err)
	return ok && refused.Code == amqp.AccessRefused
}

// userIn returns the correct user name in the broker's refusal of another name, or "".
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

// WithUserID sets whether messages carry the user_id by which servers know their callers
// ([Request.User]), and whether servers trust the property; the default is true. Each new
// session tests the name once; if the broker does not confirm the name, messages are
// anonymous. Switch the option off if the broker does not validate the property.
func WithUserID(on bool) Option { return option(func(c *config) { c.userID = on }) }
