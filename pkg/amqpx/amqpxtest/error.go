package amqpxtest

import (
	"time"

	"rabbitmq-rpc/pkg/amqpx"
	"rabbitmq-rpc/pkg/amqpx/internal/hook"
)

// Error returns an error as a call returns it, with any outcome, for tests of callers: of a fake
// in place of a client, or of middleware that answers in place of a server ([amqpx.WithMiddleware]).
// Without options the error is one of the caller's own process, without a text:
//
//	amqpxtest.Error(amqpx.CodeUnavailable, amqpx.DidNotRun, amqpxtest.Cause(amqpx.ErrUnroutable))
//	amqpxtest.Error(amqpx.CodeResourceExhausted, amqpx.DidNotRun, amqpxtest.Remote(), amqpxtest.RetryAfter(time.Second))
//
// Details are added by [amqpx.Error.WithDetail].
func Error(code amqpx.Code, outcome amqpx.Outcome, opts ...ErrorOption) *amqpx.Error {
	p := hook.ErrorParts{Code: string(code), Outcome: uint8(outcome)}
	for _, o := range opts {
		o.apply(&p)
	}
	e, _ := hook.NewError(p).(*amqpx.Error)
	return e
}

// ErrorOption is an option of [Error].
type ErrorOption interface{ apply(p *hook.ErrorParts) }

type errorOption func(*hook.ErrorParts)

func (o errorOption) apply(p *hook.ErrorParts) { o(p) }

// Message sets the text of the error without its code.
func Message(text string) ErrorOption {
	return errorOption(func(p *hook.ErrorParts) { p.Message = text })
}

// Remote makes the error one that a server has sent.
func Remote() ErrorOption { return errorOption(func(p *hook.ErrorParts) { p.Remote = true }) }

// RetryAfter sets the hint how long to wait before calling again.
func RetryAfter(d time.Duration) ErrorOption {
	return errorOption(func(p *hook.ErrorParts) { p.RetryAfter = d })
}

// Cause adds errors that [errors.Is] finds in the error, such as [amqpx.ErrUnroutable].
func Cause(causes ...error) ErrorOption {
	return errorOption(func(p *hook.ErrorParts) { p.Causes = append(p.Causes, causes...) })
}

// Progress makes the error one that ended a stream which had come so far, see [amqpx.ProgressOf]. Without
// this option the progress is zero.
func Progress(progress amqpx.Progress) ErrorOption {
	return errorOption(func(p *hook.ErrorParts) { p.Progress = new(progress) })
}
