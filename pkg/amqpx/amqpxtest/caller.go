package amqpxtest

import (
	"context"
	"errors"

	"rabbitmq-rpc/pkg/amqpx"
	"rabbitmq-rpc/pkg/amqpx/internal/hook"
)

// Caller is a fake client: a function that answers calls, in tests of code that depends on
// [amqpx.Caller]. The function gets each call as the request that middleware of a client gets, with
// the options of the call: header, content type, idempotency key, a correlation id. The context has
// the deadline of the call, of [amqpx.CallTimeout] or the default of a client. The Handler of a
// typed method is such a function:
//
//	stock := amqpxtest.Caller(GetStock.Handler(func(context.Context, StockRequest) (Stock, error) {
//		return Stock{Left: 3}, nil
//	}))
//
// An [*amqpx.Error], mostly made by [Error], reaches the caller unchanged. Any other error reaches
// the caller like the error of a handler: the end of the context with its code, the rest with
// [amqpx.CodeInternal] and without text. If ctx has ended before the call, the function is not
// called, and the outcome is [amqpx.DidNotRun]. A CallInfo is not filled.
type Caller func(ctx context.Context, req *amqpx.Request) ([]byte, error)

// Call implements [amqpx.Caller].
func (f Caller) Call(ctx context.Context, method string, body []byte, opts ...amqpx.CallOption) ([]byte, error) {
	made, timeout, mistake := hook.NewRequest(method, body, opts)
	req, _ := made.(*amqpx.Request)
	if mistake != nil {
		return nil, Error(amqpx.CodeInvalidArgument, amqpx.DidNotRun, Message(mistake.Error()))
	}
	if _, has := ctx.Deadline(); !has && timeout == 0 {
		timeout = amqpx.DefaultTimeout
	}
	if timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, timeout)
		defer cancel()
	}
	if err := ctx.Err(); err != nil {
		return nil, Error(amqpx.CodeOf(err), amqpx.DidNotRun, Cause(err))
	}
	response, err := f(ctx, req)
	if err == nil {
		return response, nil
	}
	if coded, ok := errors.AsType[*amqpx.Error](err); ok && coded != nil {
		return nil, coded
	}
	switch code := amqpx.CodeOf(err); code {
	case amqpx.CodeCanceled, amqpx.CodeDeadlineExceeded:
		return nil, Error(code, amqpx.MayHaveRun, Cause(err))
	default:
		return nil, Error(amqpx.CodeInternal, amqpx.Ran, Remote(), Message("internal error"))
	}
}
