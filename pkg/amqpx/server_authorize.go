package amqpx

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"go.uber.org/zap"

	"rabbitmq-rpc/pkg/amqpx/internal/wire"
)

// AnyUser and AnonymousUser stand for users in [AuthorizationRules].
const (
	// AnyUser stands for every caller whose user the broker has validated.
	AnyUser = "*"
	// AnonymousUser stands for callers without a validated user: [Request.User] is empty.
	AnonymousUser = ""
)

// AuthorizationRules say which users may call which methods. A call that no rule allows is
// refused, so empty rules refuse every call. AuthorizationRules do not change, and are safe for
// concurrent use.
type AuthorizationRules struct {
	methods  map[string]users
	prefixes []prefixRule // of the patterns that end with "*"
}

// prefixRule allows users to call the methods whose names begin with prefix.
type prefixRule struct {
	prefix  string
	allowed users
}

// users is a set of users, which may contain AnyUser and AnonymousUser.
type users map[string]bool

// allow reports whether the set contains a user.
func (u users) allow(user string) bool { return u[user] || user != AnonymousUser && u[AnyUser] }

// NewAuthorizationRules returns the rules of a map from patterns to lists of users. A pattern is
// the name of a method, or the beginning of names followed by "*"; "*" alone stands for all
// methods. A caller may call a method if any pattern that matches the method lists the caller's
// user, or [AnyUser], or for a caller without a user [AnonymousUser]. All invalid patterns are
// reported in one error.
func NewAuthorizationRules(rules map[string][]string) (*AuthorizationRules, error) {
	r := &AuthorizationRules{methods: make(map[string]users)}
	var faults []error
	for _, pattern := range slices.Sorted(maps.Keys(rules)) {
		allowed := make(users, len(rules[pattern]))
		for _, name := range rules[pattern] {
			allowed[name] = true
		}
		prefix, isPrefix := strings.CutSuffix(pattern, "*")
		switch {
		case pattern == "" || len(pattern) > wire.MaxShortString:
			faults = append(faults, fmt.Errorf("method pattern of %d bytes: want 1 to %d", len(pattern), wire.MaxShortString))
		case strings.Contains(prefix, "*"):
			faults = append(faults, fmt.Errorf("method pattern %q: want \"*\" only at the end", pattern))
		case isPrefix:
			r.prefixes = append(r.prefixes, prefixRule{prefix, allowed})
		default:
			r.methods[pattern] = allowed
		}
	}
	if err := errors.Join(faults...); err != nil {
		return nil, fmt.Errorf("amqpx: authorization rules: %w", err)
	}
	return r, nil
}

// ParseAuthorizationRules reads rules from JSON, see [NewAuthorizationRules]:
//
//	{"methods": {"report.*": ["alice", "CN=billing,O=Acme"], "status": ["*", ""]}}
//
// A member other than "methods", a pattern that occurs twice, and text after the object are
// errors.
func ParseAuthorizationRules(text []byte) (*AuthorizationRules, error) {
	var file struct {
		Methods *methodRules `json:"methods"`
	}
	decoder := json.NewDecoder(bytes.NewReader(text))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&file); err != nil {
		return nil, fmt.Errorf("amqpx: authorization rules: %w", err)
	}
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("amqpx: authorization rules: there is text after the object")
	}
	if file.Methods == nil {
		return nil, errors.New(`amqpx: authorization rules: the member "methods" is missing`)
	}
	return NewAuthorizationRules(*file.Methods)
}

// methodRules maps patterns to users. encoding/json would keep the last of several equal
// patterns without an error.
type methodRules map[string][]string

// UnmarshalJSON implements json.Unmarshaler.
func (m *methodRules) UnmarshalJSON(text []byte) error {
	if *m != nil {
		return errors.New(`the member "methods" occurs twice`)
	}
	decoder := json.NewDecoder(bytes.NewReader(text))
	if begin, err := decoder.Token(); err != nil || begin != json.Delim('{') {
		return errors.New("want an object of methods")
	}
	*m = make(methodRules)
	for decoder.More() {
		key, err := decoder.Token()
		if err != nil {
			return err
		}
		pattern, ok := key.(string)
		if !ok {
			return errors.New("want a method pattern")
		}
		if _, again := (*m)[pattern]; again {
			return fmt.Errorf("the method pattern %q occurs twice", pattern)
		}
		var names []string
		if err := decoder.Decode(&names); err != nil {
			return fmt.Errorf("users of %q: %w", pattern, err)
		}
		(*m)[pattern] = names
	}
	return nil
}

// Allow reports whether a caller may call a method. The user is "" for a caller without a
// validated user. Nil rules allow nothing.
func (r *AuthorizationRules) Allow(method, user string) bool {
	if r == nil {
		return false
	}
	if r.methods[method].allow(user) {
		return true
	}
	for _, p := range r.prefixes {
		if strings.HasPrefix(method, p.prefix) && p.allowed.allow(user) {
			return true
		}
	}
	return false
}

// Lists reports whether any rule lists a user by name. The servers' own user should have no
// rule: a program with the password of this user can name any caller in copies of requests.
func (r *AuthorizationRules) Lists(user string) bool {
	if r == nil || user == AnyUser || user == AnonymousUser {
		return false
	}
	for _, allowed := range r.methods {
		if allowed[user] {
			return true
		}
	}
	for _, p := range r.prefixes {
		if p.allowed[user] {
			return true
		}
	}
	return false
}

// Authorize returns middleware of a server that runs only the calls which the rules allow.
// The function rules is called for each call, concurrently, and returns the rules in force; a
// nil function, and nil rules, allow nothing. A refused call was not run: the caller gets
// [CodePermissionDenied], or [CodeUnauthenticated] without a validated user ([Request.User]),
// with [DidNotRun] unless the request was delivered or sent before. The refusal is counted as
// refused ([ServerStats], [ServerObserver]), and logged at most once every 30 s; a nil logger
// logs nothing.
//
// Duplicates of a call are authorized like any call, before they get a stored response
// ([WithDedup]). Requests for methods that the server does not have are refused before any
// middleware runs. On a client, where requests have no user, Authorize has no use.
func Authorize(rules func() *AuthorizationRules, log *zap.Logger) Middleware {
	log = orNop(log)
	limit := new(logLimit)
	return func(next Handler) Handler {
		return func(ctx context.Context, req *Request) ([]byte, error) {
			if rules != nil && rules().Allow(req.Method, req.User) {
				return next(ctx, req)
			}
			limit.of(log).Warn("refused a call that the authorization rules do not allow",
				zap.String("user", req.User), zap.String("method", req.Method), zap.String("correlation_id", req.CorrelationID))
			e := refusal(CodePermissionDenied, "user %q may not call %q", req.User, req.Method)
			if req.User == AnonymousUser {
				e = refusal(CodeUnauthenticated, "a caller without a validated user may not call %q", req.Method)
			}
			if r, ok := ctx.Value(invocationKey{}).(*invocation); ok {
				return nil, r.refuse(e)
			}
			return nil, e
		}
	}
}
