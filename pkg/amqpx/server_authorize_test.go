package amqpx

import (
	"context"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
	"go.uber.org/zap"

	"rabbitmq-rpc/pkg/amqpx/internal/wire"
)

// rulesOf returns the rules of a JSON text.
func rulesOf(t *testing.T, text string) *AuthorizationRules {
	t.Helper()
	rules, err := ParseAuthorizationRules([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return rules
}

func TestWhoMayCallWhat(t *testing.T) {
	t.Parallel()
	rules := rulesOf(t, `{"methods": {
		"a": ["alice", "CN=orders,O=Acme"], "report.*": ["bob"], "report.daily": ["alice"], "status": ["*"], "ping": [""], "open": ["*", ""],
		"*": ["root"], "nobody": []}}`)
	for _, c := range []struct {
		method, user string
		want         bool
	}{
		{"a", "alice", true},
		{"a", "CN=orders,O=Acme", true},
		{"a", "bob", false},
		{"a", "Alice", false},
		{"a", "", false},
		{"A", "alice", false},
		{"ab", "alice", false},
		{"report.weekly", "bob", true},
		{"report.", "bob", true},
		{"report", "bob", false},
		{"report.daily", "bob", true}, // every matching pattern counts
		{"report.daily", "alice", true},
		{"report.weekly", "alice", false},
		{"status", "anybody", true},
		{"status", "", false},
		{"ping", "", true},
		{"ping", "alice", false},
		{"open", "", true},
		{"open", "alice", true},
		{"nobody", "alice", false},
		{"nobody", "root", true},
		{"unlisted", "root", true},
		{"unlisted", "alice", false},
		{"", "alice", false},
	} {
		wantSame(t, c.user+" calls "+c.method, rules.Allow(c.method, c.user), c.want)
	}
	wantSame(t, "no rules", (*AuthorizationRules)(nil).Allow("a", "alice"), false)
	wantSame(t, "empty rules", rulesOf(t, `{"methods": {}}`).Allow("a", "alice"), false)
	for user, listed := range map[string]bool{"alice": true, "root": true, "bob": true, "anybody": false, "*": false, "": false} {
		wantSame(t, "lists "+user, rules.Lists(user), listed)
	}
	wantSame(t, "no rules list", (*AuthorizationRules)(nil).Lists("alice"), false)
}

func TestInvalidAuthorizationRules(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		``:                               "EOF",
		`{`:                              "unexpected EOF",
		`[]`:                             "cannot unmarshal array",
		`{}`:                             `the member "methods" is missing`,
		`{"methods": null}`:              `the member "methods" is missing`,
		`{"methods": []}`:                "want an object of methods",
		`{"methods": {"a": "alice"}}`:    `users of "a"`,
		`{"methods": {"a": [1]}}`:        `users of "a"`,
		`{"methods": {}, "users": {}}`:   `unknown field "users"`,
		`{"methods": {}} {"methods":{}}`: "there is text after the object",
		`{"methods": {}, "methods": {}}`: `the member "methods" occurs twice`,
		`{"methods": {"a": ["alice"], "a": ["bob"]}}`: `the method pattern "a" occurs twice`,
		`{"methods": {"": [], "a*b": [], "*.x": []}}`: "method pattern of 0 bytes: want 1 to 255\nmethod pattern \"*.x\": want \"*\" only at the end\nmethod pattern \"a*b\"",
	} {
		if _, err := ParseAuthorizationRules([]byte(text)); err == nil {
			t.Errorf("%s is accepted", text)
		} else {
			wantTexts(t, err, want)
		}
	}
}

// A refused call was not run, and both codes say so. The rules in force when a call runs count.
func TestAuthorize(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var rules atomic.Pointer[AuthorizationRules]
		var runs atomic.Int64
		var notes observerNotes
		log, logs := observed(zap.WarnLevel)
		b, s := serve(t, handlers{"m": counted(&runs, whoCalls)}, WithServerObserver(&notes), WithMiddleware(Authorize(rules.Load, log)))
		send := func(msg amqp.Publishing) amqp.Publishing {
			t.Helper()
			putRequest(b, msg)
			settle()
			responses := takeResponses(b)
			if len(responses) != 1 {
				t.Fatalf("%d responses, want 1", len(responses))
			}
			return responses[0]
		}
		wantRefused := func(what string, a amqp.Publishing, code Code, ran any) {
			t.Helper()
			wantSame(t, what+": code", a.Headers[wire.HeaderCode], any(string(code)))
			wantSame(t, what+": ran", a.Headers[wire.HeaderRan], ran)
		}
		wantRefused("no rules", send(sent("1", "", ofUser("alice"))), CodePermissionDenied, false)
		rules.Store(rulesOf(t, `{"methods": {"m": ["alice"]}}`))
		wantSame(t, "allowed", string(send(sent("2", "", ofUser("alice"))).Body), "alice")
		wantRefused("another user", send(sent("3", "", ofUser("bob"))), CodePermissionDenied, false)
		wantRefused("no user", send(sent("4", "")), CodeUnauthenticated, false)
		wantRefused("no user, with a claim", send(sent("5", "", func(p *amqp.Publishing) {
			p.Headers = amqp.Table{wire.HeaderUser: "alice"}
		})), CodeUnauthenticated, false)
		wantRefused("a call that was sent before", send(sent("6", "", ofUser("bob"), resent)), CodePermissionDenied, nil)
		rules.Store(rulesOf(t, `{"methods": {"m": ["bob"]}}`))
		wantSame(t, "allowed later", string(send(sent("7", "", ofUser("bob"))).Body), "bob")
		wantRefused("no longer allowed", send(sent("8", "", ofUser("alice"))), CodePermissionDenied, false)
		wantSame(t, "runs", runs.Load(), 2)
		wantSame(t, "stats", s.Stats(), ServerStats{Requests: 8, DefaultExchange: 8, OK: 2, Refused: 6, Workers: DefaultWorkers})
		notes.mu.Lock()
		wantSame(t, "observed", notes.notes[0], `refused "m" permission_denied`)
		notes.mu.Unlock()
		wantSame(t, "lines", logs.Len(), 1)
		pass(logInterval)
		wantRefused("much later", send(sent("9", "", ofUser("alice"))), CodePermissionDenied, false)
		wantSame(t, "not logged", logs.All()[1].ContextMap()["not_logged"], any(int64(5)))
	})
}

// A caller with the idempotency key of an allowed call does not get the stored response.
func TestAuthorizeComesBeforeStoredResponses(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var rules atomic.Pointer[AuthorizationRules]
		rules.Store(rulesOf(t, `{"methods": {"m": ["alice"]}}`))
		b, _ := serve(t, handlers{"m": echo}, WithMiddleware(Authorize(rules.Load, nil)))
		putRequest(b, sent("1", "key", ofUser("alice"), withBody("secret")))
		settle()
		wantSame(t, "first", onlyResponse(t, b), "secret")
		rules.Store(rulesOf(t, `{"methods": {}}`))
		putRequest(b, sent("2", "key", ofUser("alice"), withBody("secret")))
		settle()
		wantSame(t, "repeated", onlyResponse(t, b), string(CodePermissionDenied))
	})
}

// Outside a server the middleware refuses as well, because a request has no user there.
func TestAuthorizeWithoutAServer(t *testing.T) {
	t.Parallel()
	h := Chain(echo, Authorize(nil, nil))
	_, err := h(context.Background(), &Request{Method: "m"})
	wantSame(t, "code", CodeOf(err), CodeUnauthenticated)
	wantSame(t, "outcome", OutcomeOf(err), DidNotRun)
}

// onServer is an option of a rig's server only.
type onServer struct{ ServerOption }

func (onServer) applyClient(*clientConfig) {}

// The calls of a batch are authorized one by one.
func TestAuthorizeInABatch(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		rules := rulesOf(t, `{"methods": {"m": ["app"], "start batching": ["app"]}}`)
		only := func() *AuthorizationRules { return rules }
		r := startRig(t, handlers{"m": whoCalls, "other": whoCalls, "start batching": echo}, WithBatch(BatchAuto),
			onServer{WithMiddleware(Authorize(only, nil))})
		r.awaitBatching()
		calls := r.together(func() (all []<-chan result) {
			for range 3 {
				all = append(all, goCall(r.client, within(t, time.Minute), "m", nil), goCall(r.client, within(t, time.Minute), "other", nil))
			}
			return all
		})
		for i, call := range calls {
			got := <-call
			if i%2 == 0 {
				wantResponse(t, got, "app")
				continue
			}
			wantSame(t, "code", CodeOf(got.err), CodePermissionDenied)
			wantSame(t, "outcome", OutcomeOf(got.err), DidNotRun)
		}
	})
}
