package amqpx

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
	"go.uber.org/zap"

	"rabbitmq-rpc/pkg/amqpx/internal/brokertest"
	"rabbitmq-rpc/pkg/amqpx/internal/transport"
)

// tokens is a source of credentials. The passwords are "t/1", "t/2" and so on; the slash must
// be escaped in a URL.
type tokens struct {
	user  string
	lives time.Duration // 0: a token does not end

	mu    sync.Mutex
	given int
	asked []time.Time
	fault error // the next results, until it is nil
	keeps bool  // the last credentials are returned again
	last  Credentials
}

func (s *tokens) get(context.Context) (Credentials, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked = append(s.asked, time.Now())
	if s.fault != nil {
		return Credentials{}, s.fault
	}
	if s.keeps {
		return s.last, nil
	}
	s.given++
	s.last = Credentials{User: s.user, Password: fmt.Sprintf("t/%d", s.given)}
	if s.lives > 0 {
		s.last.Expires = time.Now().Add(s.lives)
	}
	return s.last, nil
}

// set changes the source.
func (s *tokens) set(change func(*tokens)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change(s)
}

// count returns how often the source was asked.
func (s *tokens) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.asked)
}

// dials returns the URLs of all connections.
func dials(b *brokertest.Broker) (urls []string) {
	b.With(func(b *brokertest.Broker) { urls = append(urls, b.Dials...) })
	return urls
}

// secrets returns the new passwords of all connections.
func secrets(b *brokertest.Broker) (all []brokertest.Secret) {
	b.With(func(b *brokertest.Broker) { all = append(all, b.Secrets...) })
	return all
}

// Credentials are in the URL of every connection of an attempt, and both connections get each
// new password when a fifth of the lifetime is left.
func TestCredentialsAreRefreshedBeforeTheyEnd(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b, source := brokertest.New(), &tokens{lives: 100 * time.Second}
		c := startClient(t, b, WithCredentials(source.get))
		ready(t, c.WaitReady)
		begun := time.Now()
		for _, url := range dials(b) {
			wantSame(t, "dialed", url, "amqp://app:t%2F1@broker.test:5672/")
		}
		wantSame(t, "asked", source.count(), 1)
		pass(170 * time.Second)
		got := secrets(b)
		wantSame(t, "updates", len(got), 4)
		for i, s := range got {
			wantSame(t, "password", s.Password, fmt.Sprintf("t/%d", 2+i/2))
			wantSame(t, "after", s.At.Sub(begun), time.Duration(80*(1+i/2))*time.Second)
		}
		if len(got) == 4 && (got[0].Conn == got[1].Conn || got[2].Conn == got[3].Conn) {
			t.Errorf("not each connection has the new password: %v", got)
		}
		wantSame(t, "generation", c.Status().Generation, uint64(1))
	})
}

// Credentials without an end are not refreshed, and another user's apply to the next attempt.
func TestCredentialsOfTheNextAttempt(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b, source := brokertest.New(), &tokens{user: "one", lives: 100 * time.Second}
		c := startClient(t, b, WithCredentials(source.get))
		ready(t, c.WaitReady)
		source.set(func(s *tokens) { s.user, s.lives = "two", 0 })
		pass(time.Hour)
		wantSame(t, "asked", source.count(), 2)
		wantSame(t, "updates", len(secrets(b)), 0)
		wantSame(t, "generation", c.Status().Generation, uint64(1))
		b.Kick(&amqp.Error{Code: amqp.ConnectionForced, Server: true, Reason: "CONNECTION_FORCED - user was deleted"})
		pass(10 * time.Second)
		ready(t, c.WaitReady)
		urls := dials(b)
		wantSame(t, "first", urls[0], "amqp://one:t%2F1@broker.test:5672/")
		wantSame(t, "last", urls[len(urls)-1], "amqp://two:t%2F3@broker.test:5672/")
	})
}

// A source that fails, or returns the same password, is asked again with growing pauses. If
// the broker ends the connections meanwhile, the next attempt has new credentials.
func TestSourceOfCredentialsThatFails(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		breaks, mends func(*tokens)
		text          string
	}{
		"error":         {func(s *tokens) { s.fault = errors.New("the provider is away") }, func(s *tokens) { s.fault = nil }, "the provider is away"},
		"same password": {func(s *tokens) { s.keeps = true }, func(s *tokens) { s.keeps = false }, "same credentials"},
	} {
		for _, ends := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, connection ends %v", name, ends), func(t *testing.T) {
				t.Parallel()
				synctest.Test(t, func(t *testing.T) {
					b, source := brokertest.New(), &tokens{lives: 10 * time.Minute}
					log, logs := observed(zap.WarnLevel)
					client := startClient(t, b, WithCredentials(source.get), WithLogger(log))
					ready(t, client.WaitReady)
					source.set(c.breaks)
					pass(9 * time.Minute)
					if n := source.count(); n < 8 || n > 40 { // a pause is 5 s on average, at most 10 s
						t.Errorf("asked %d times in the minute after the first failure", n)
					}
					told := logs.FilterMessage("credentials could not be refreshed").All()
					if len(told) == 0 || len(told) > 3 || !strings.Contains(fmt.Sprint(told[0].ContextMap()["error"]), c.text) {
						t.Errorf("the log has %v", told)
					}
					wantSame(t, "updates", len(secrets(b)), 0)
					source.set(c.mends)
					if ends {
						b.Kick(&amqp.Error{Code: amqp.NotAllowed, Server: true, Reason: "NOT_ALLOWED - credential expired"})
						pass(10 * time.Second)
						ready(t, client.WaitReady)
						wantSame(t, "generation", client.Status().Generation, uint64(2))
						urls := dials(b)
						wantSame(t, "last dial", urls[len(urls)-1], "amqp://app:t%2F2@broker.test:5672/")
						return
					}
					pass(10 * time.Second)
					got := secrets(b)
					wantSame(t, "updates", len(got), 2)
					wantSame(t, "generation", client.Status().Generation, uint64(1))
				})
			})
		}
	}
}

// While the broker does not respond on one connection, the other connection gets its passwords.
func TestSilentConnectionDoesNotHoldUpTheOther(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b, source := brokertest.New(), &tokens{lives: 100 * time.Second}
		b.OnCall = func(op, name string) error {
			if op == "update-secret" && strings.HasSuffix(name, " publish") {
				return brokertest.ErrHang
			}
			return nil
		}
		s := startServer(t, b, handlers{"echo": echo}, WithCredentials(source.get))
		ready(t, s.WaitReady)
		pass(250 * time.Second)
		got := secrets(b)
		wantSame(t, "updates", len(got), 3)
		for _, one := range got {
			if !strings.HasSuffix(one.Conn, " consume") {
				t.Errorf("update of %q", one.Conn)
			}
		}
	})
}

// Without credentials there is no dial; the fault is for programs, and quick attempts follow.
func TestNoCredentialsNoDial(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b, source := brokertest.New(), &tokens{fault: errors.New("the provider is away")}
		c := startClient(t, b, WithCredentials(source.get))
		pass(10 * time.Second)
		wantSame(t, "dials", len(dials(b)), 0)
		st := c.Status()
		wantSame(t, "fault", st.Fault, FaultCredentialsSource)
		wantTexts(t, st.Err, "broker broker.test:5672: get credentials: the program's source of credentials failed: the provider is away")
		if n := source.count(); n < 8 {
			t.Errorf("asked %d times in 10 s", n)
		}
		source.set(func(s *tokens) { s.fault = nil })
		pass(2 * time.Second)
		ready(t, c.WaitReady)
	})
}

// A source that hangs is ended by the dial timeout.
func TestSourceOfCredentialsThatHangs(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.New()
		c := startClient(t, b, WithCredentials(func(ctx context.Context) (Credentials, error) {
			<-ctx.Done()
			return Credentials{}, ctx.Err()
		}))
		pass(DefaultDialTimeout + time.Millisecond)
		wantSame(t, "fault", c.Status().Fault, FaultCredentialsSource)
	})
}

// Credentials that have ended by this machine's clock do not make a tight loop.
func TestCredentialsThatHaveEnded(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.New()
		n := 0
		c := startClient(t, b, WithCredentials(func(context.Context) (Credentials, error) {
			n++
			return Credentials{Password: fmt.Sprint(n), Expires: time.Now().Add(-time.Hour)}, nil
		}))
		ready(t, c.WaitReady)
		pass(10 * time.Second)
		wantSame(t, "updates", len(secrets(b)), 20)
	})
}

// The user of a client certificate needs no credentials.
func TestExternalTakesNoCredentials(t *testing.T) {
	t.Parallel()
	source := &tokens{}
	c, err := newClientConfig("amqps://h/?auth_mechanism=external", []ClientOption{WithCredentials(source.get)})
	if err != nil {
		t.Fatal(err)
	}
	cfg := c.sessions("client", false, noStatus{}, nil)
	target, credentials, err := cfg.Authorize(t.Context(), c.targets()[0])
	if err != nil || credentials != nil || target.URL != "amqps://h/?auth_mechanism=external" || source.count() != 0 {
		t.Errorf("%v, %v, %v", target, credentials, err)
	}
}

func TestCredentialsReplaceThoseOfTheURL(t *testing.T) {
	t.Parallel()
	source := func(context.Context) (Credentials, error) {
		return Credentials{User: "ü:ser", Password: "p@ss/w?rd#"}, nil
	}
	for url, want := range map[string]string{
		"amqp://h":                          "amqp://%C3%BC%3Aser:p%40ss%2Fw%3Frd%23@h",
		"amqps://u:p@[::1]:5/v?heartbeat=5": "amqps://%C3%BC%3Aser:p%40ss%2Fw%3Frd%23@[::1]:5/v?heartbeat=5",
		"amqp://u:p@x@h/v%40w":              "amqp://%C3%BC%3Aser:p%40ss%2Fw%3Frd%23@h/v%40w",
		"amqp://h?channel_max=9":            "amqp://%C3%BC%3Aser:p%40ss%2Fw%3Frd%23@h?channel_max=9",
	} {
		c, err := newClientConfig(url, []ClientOption{WithCredentials(source)})
		if err != nil {
			t.Fatal(err)
		}
		cfg := c.sessions("client", false, noStatus{}, nil)
		target, _, err := cfg.Authorize(t.Context(), c.targets()[0])
		if err != nil {
			t.Fatal(err)
		}
		wantSame(t, url, target.URL, want)
		wantSame(t, "user", target.User, "ü:ser")
		uri, err := amqp.ParseURI(target.URL)
		if err != nil {
			t.Fatal(err)
		}
		wantSame(t, "parsed user", uri.Username, "ü:ser")
		wantSame(t, "parsed password", uri.Password, "p@ss/w?rd#")
	}
}

func TestCredentialsShowNoPassword(t *testing.T) {
	t.Parallel()
	c := Credentials{User: "u", Password: marker, Expires: time.Unix(0, 0).UTC()}
	encoded, err := json.Marshal(map[string]any{"c": c})
	if err != nil {
		t.Fatal(err)
	}
	all := fmt.Sprintf("%v %+v %s %q %#v %v", c, c, c, c, c, &c) + string(encoded)
	if showsMarker(all) || !strings.Contains(all, `"user \"u\" until 1970-01-01T00:00:00Z"`) {
		t.Error(all)
	}
	wantSame(t, "without an end", Credentials{User: "u"}.String(), `user "u"`)
	_ = transport.Credentials(c) // the fields are the same
}
