package amqpx

import (
	"errors"
	"strings"
	"sync/atomic"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
	"go.uber.org/zap"
)

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
		err := ch.publishToAll("", amqp.Publishing{UserId: name, AppId: "user"})
		if err == nil {
			err = ch.sync()
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
		return false, errLinkEnded
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
