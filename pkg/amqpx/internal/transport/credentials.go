package transport

import (
	"context"
	"errors"
	"net/url"
	"strings"
	"time"

	"go.uber.org/zap"

	"rabbitmq-rpc/pkg/amqpx/internal/xsync"
)

// Credentials are a user's name and password, which may be a token.
type Credentials struct {
	User     string // empty: the user of the URL
	Password string
	Expires  time.Time // the end of the password; zero: none
}

// refreshShare is the share of the remaining lifetime of credentials after which they are
// refreshed. The rest of the lifetime is for further attempts, if the source fails.
const refreshShare = 0.8

// errSameCredentials means that the source returned the password that is about to end.
var errSameCredentials = errors.New("the source returned the same credentials again")

// Authorize asks for credentials and returns them with the target for one attempt to connect.
// Without a source of credentials, and for a user from the client certificate, the target is
// unchanged, and the credentials are nil.
func (c *Config) Authorize(ctx context.Context, target Target) (Target, *Credentials, error) {
	if c.Credentials == nil || target.External {
		return target, nil, nil
	}
	fresh, err := c.Credentials(ctx)
	if err != nil {
		return target, nil, AtStep(stepCredentials, "", &KindError{Kind: FaultCredentialsSource, Cause: err})
	}
	if fresh.User == "" {
		fresh.User = target.User
	}
	target.User, target.URL = fresh.User, withUser(target.URL, fresh.User, fresh.Password)
	return target, &fresh, nil
}

// withUser returns a valid broker URL with another user and password.
func withUser(raw, user, password string) string {
	scheme, rest, _ := strings.Cut(raw, "://")
	end := strings.IndexAny(rest, "/?")
	if end < 0 {
		end = len(rest)
	}
	host := rest[strings.LastIndex(rest[:end], "@")+1:]
	return scheme + "://" + url.UserPassword(user, password).String() + "@" + host
}

// minRefreshPause is the least pause between two refreshes, for credentials that have ended
// by this machine's clock.
const minRefreshPause = time.Second

// keepCredentials refreshes the credentials of a session before they end, for as long as the
// session lives. It is a goroutine of the session. A failure of the source is logged, and the
// source is asked again. If the broker ends the connection nevertheless, the next attempt to
// connect asks for credentials anyway.
func (v *Supervisor) keepCredentials(ctx context.Context, s *Session, now Credentials) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx)) // the attempt to connect is over
	defer cancel()
	s.Run(func() {
		select {
		case <-s.Done:
			cancel()
		case <-ctx.Done():
		}
	})
	retry := xsync.NewBackoff(v.BackoffMin, max(v.BackoffMin, v.BackoffMax))
	var faults faultLog
	for pause := refreshPause(now); pause > 0; {
		if xsync.Sleep(ctx, pause); ctx.Err() != nil {
			return
		}
		fresh, err := v.refreshed(ctx, s, now)
		if err == nil {
			now, pause = fresh, refreshPause(fresh)
			retry.Reset()
			continue
		}
		if ctx.Err() != nil {
			return
		}
		log := v.Logger.Debug
		if faults.note(err.Error()) {
			log = v.Logger.Warn
		}
		log("credentials could not be refreshed", zap.String("role", v.Role), zap.Time("expires", now.Expires), zap.Error(err))
		pause = max(retry.NextBackOff(), 1)
	}
}

// refreshPause returns the pause before the refresh of credentials; 0: the credentials do not
// end.
func refreshPause(now Credentials) time.Duration {
	if now.Expires.IsZero() {
		return 0
	}
	return max(minRefreshPause, time.Duration(refreshShare*float64(time.Until(now.Expires))))
}

// refreshed asks for new credentials and passes their password to the broker. The credentials
// of another user apply only to the next attempt to connect, because the user of an open
// connection cannot change.
func (v *Supervisor) refreshed(ctx context.Context, s *Session, now Credentials) (Credentials, error) {
	ctx, cancel := context.WithTimeout(ctx, v.DialTimeout)
	defer cancel()
	fresh, err := v.Credentials(ctx)
	switch {
	case err != nil:
		return now, err
	case fresh.Password == now.Password && !fresh.Expires.IsZero() && !fresh.Expires.After(now.Expires):
		return now, errSameCredentials
	case fresh.User != "" && fresh.User != s.Target.User:
		v.Logger.Info("credentials of another user, for the next attempt to connect", zap.String("role", v.Role), zap.String("user", fresh.User))
	default:
		s.updateSecret(fresh.Password, v.Logger)
	}
	return fresh, nil
}

// updateSecret passes a new password to the broker, on each connection, without a wait for the
// broker's response: while the broker blocks publishing, the broker does not read from the
// publishing connection. If the broker refuses the password, it ends the connection.
func (s *Session) updateSecret(password string, log *zap.Logger) {
	conns := []Conn{s.Pub}
	if s.Sub != s.Pub {
		conns = append(conns, s.Sub)
	}
	for _, conn := range conns {
		s.Run(func() { // the end of the session cuts the connection and so ends this goroutine
			if err := conn.UpdateSecret(password); err != nil && !s.Ended() {
				log.Warn("the broker did not take the refreshed credentials", zap.Error(s.Target.redact(err)))
			}
		})
	}
}
