package amqpx

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"
)

// Mistakes in the use of this package are errors that name the mistake, at the moment that it
// is made, and no panics. Only [Chain], which has no error to return, tells with each call.

var (
	errNoClient   = errors.New("this Client was not made by NewClient")
	errNoServer   = errors.New("this Server was not made by NewServer")
	errNoFuture   = errors.New("this Future was not made by Client.Go")
	errNilContext = errors.New("the context is nil: pass context.Background() if there is no other")
	errNilOption  = errors.New("a CallOption is nil")
)

// serverClosedError is ErrClosed in the words of a server.
type serverClosedError struct{}

func (serverClosedError) Error() string        { return "server closed" }
func (serverClosedError) Is(target error) bool { return target == ErrClosed }

// misused makes the error of a mistake, for what a caller made.
func misused(mistake error) error {
	return localError(CodeInvalidArgument, DidNotRun, nil, mistake.Error(), mistake)
}

// check returns the error of a client that was not made by NewClient, and of a nil context.
func (c *Client) check(ctx context.Context) error {
	switch {
	case c == nil || c.cfg == nil:
		return misused(errNoClient)
	case ctx == nil:
		return misused(errNilContext)
	default:
		return nil
	}
}

// checkCall is check for a call.
func (c *Client) checkCall(ctx context.Context, opts []CallOption) error {
	for _, o := range opts {
		if o == nil {
			return misused(errNilOption)
		}
	}
	return c.check(ctx)
}

// check returns the error of a server that was not made by NewServer, and of a nil context.
func (s *Server) check(ctx context.Context) error {
	switch {
	case s == nil || s.cfg == nil:
		return misused(errNoServer)
	case ctx == nil:
		return misused(errNilContext)
	default:
		return nil
	}
}

// closedBoard is the status of what was never made.
func closedBoard(err error) *statusBoard {
	return &statusBoard{current: Status{State: StateClosed, Err: err}}
}

// chain is Chain with an error for a handler that is nil.
func chain(h Handler, middleware []Middleware) (Handler, error) {
	if h == nil {
		return nil, errors.New("the handler is nil")
	}
	for i, m := range slices.Backward(middleware) {
		if m == nil {
			return nil, fmt.Errorf("middleware %d is nil", i+1)
		}
		if h = m(h); h == nil {
			return nil, fmt.Errorf("middleware %d returned a nil handler", i+1)
		}
	}
	return h, nil
}

// validateNames reports every fault of the names that the broker gets.
func (c *config) validateNames() error {
	var faults []error
	if len(c.name) > maxShortString || !utf8.ValidString(c.name) {
		faults = append(faults, fmt.Errorf("WithName: name of %d bytes: want at most %d, of valid UTF-8", len(c.name), maxShortString))
	}
	for i, m := range c.middleware {
		if m == nil {
			faults = append(faults, fmt.Errorf("WithMiddleware: middleware %d is nil", i+1))
		}
	}
	return errors.Join(faults...)
}

// validateName reports a queue name that the broker would refuse, or that is the name of
// another queue's companion.
func (q Queue) validateName() error {
	var faults []error
	if strings.HasPrefix(q.Name, "amq.") {
		faults = append(faults, fmt.Errorf(`WithQueue: queue name %q: names that begin with "amq." are the broker's`, q.Name))
	}
	if !utf8.ValidString(q.Name) {
		faults = append(faults, fmt.Errorf("WithQueue: queue name %q: want valid UTF-8", q.Name))
	}
	for _, suffix := range []string{batchSuffix, retrySuffix, deadSuffix, ".control"} {
		if strings.HasSuffix(q.Name, suffix) {
			faults = append(faults, fmt.Errorf("WithQueue: queue name %q: names that end with %q are those of another queue's companions", q.Name, suffix))
		}
	}
	return errors.Join(faults...)
}

// validateShared reports the options of calls that cannot hold for several calls.
func validateShared(where string, opts []CallOption) error {
	cfg := &callConfig{}
	for i, o := range opts {
		if o == nil {
			return fmt.Errorf("%s: option %d is nil", where, i+1)
		}
		o(cfg)
	}
	var faults []error
	if cfg.idempotencyKey != "" {
		faults = append(faults, fmt.Errorf("%s: WithIdempotencyKey(%q): a key is of one call, all others would get its answer", where, cfg.idempotencyKey))
	}
	if cfg.info != nil {
		faults = append(faults, fmt.Errorf("%s: WithCallInfo: a CallInfo is of one call", where))
	}
	return errors.Join(faults...)
}
