package amqpxtest

import (
	"context"
	"errors"

	"rabbitmq-rpc/pkg/amqpx"
	"rabbitmq-rpc/pkg/amqpx/internal/hook"
)

// Caller is a fake client: a function that answers calls, in tests of code that depends on
// [amqpx.Caller], and that receives one-way requests, in tests of code that depends on [amqpx.Sender].
// The function gets each request as middleware of a client does, with the options of the call:
// header, content type, idempotency key, a correlation id. The context has the deadline of the call, of
// [amqpx.CallTimeout] or the default of a client, ends when the function has returned, and is the
// context of a handler: the function may use [amqpx.SetResponseHeader], [amqpx.SetResponseTrailer],
// [amqpx.SetResponseContentType] and [amqpx.RequestFromContext]. The Handler of a typed method is such a
// function:
//
//	stock := amqpxtest.Caller(GetStock.Handler(func(context.Context, StockRequest) (Stock, error) {
//		return Stock{Left: 3}, nil
//	}))
//
// An [*amqpx.Error], mostly made by [Error], reaches the caller unchanged. Any other error reaches
// the caller like the error of a handler: the end of the context with its code, the rest with
// [amqpx.CodeInternal] and without text. If ctx has ended before the call, the function is not
// called, and the outcome is [amqpx.DidNotRun].
//
// An [amqpx.CallInfo] has the correlation id, one attempt if the function was called and, unless the
// error is one that a client makes, the response with its header and the time of the function, but no
// name of a server, and no time in a queue.
type Caller func(ctx context.Context, req *amqpx.Request) ([]byte, error)

// Call implements [amqpx.Caller].
func (f Caller) Call(ctx context.Context, method string, body []byte, opts ...amqpx.CallOption) ([]byte, error) {
	return f.call(ctx, method, body, opts, false)
}

// Send implements [amqpx.Sender]. It returns when the function has returned. The context of the
// function has the time for the confirm, which bounds no handler of a server. Send returns nil after an
// error that a server keeps to itself: an error without a code, one with [amqpx.Ran], one of [Remote],
// or one of [amqpx.Refuse]. Any other [*amqpx.Error], such as one with [amqpx.DidNotRun], and the end of
// the context are the error of Send.
func (f Caller) Send(ctx context.Context, method string, body []byte, opts ...amqpx.CallOption) error {
	_, err := f.call(ctx, method, body, opts, true)
	return err
}

// call is Call, or Send if the request is oneWay.
func (f Caller) call(ctx context.Context, method string, body []byte, opts []amqpx.CallOption, oneWay bool) ([]byte, error) {
	made, timeout, mistake := hook.NewRequest(ctx, method, body, opts, oneWay)
	req, _ := made.(*amqpx.Request)
	if mistake != nil {
		return nil, Error(amqpx.CodeInvalidArgument, amqpx.DidNotRun, Message(mistake.Error()))
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if timeout > 0 {
		var stop context.CancelFunc
		ctx, stop = context.WithTimeout(ctx, timeout)
		defer stop()
	}
	handler, end := hook.Invoke(ctx, req)
	if err := ctx.Err(); err != nil {
		return nil, Error(amqpx.CodeOf(err), amqpx.DidNotRun, Cause(err))
	}
	response, err := f(handler, req)
	if err != nil {
		response, err = nil, errorForCaller(err)
	}
	if responded := end(response, err); responded && oneWay {
		return nil, nil
	}
	return response, err
}

// errorForCaller returns the error of a function as its caller gets it.
func errorForCaller(err error) *amqpx.Error {
	if coded, ok := errors.AsType[*amqpx.Error](err); ok && coded != nil {
		return coded
	}
	switch code := amqpx.CodeOf(err); code {
	case amqpx.CodeCanceled, amqpx.CodeDeadlineExceeded:
		return Error(code, amqpx.MayHaveRun, Cause(err))
	default:
		return Error(amqpx.CodeInternal, amqpx.Ran, Remote(), Message("internal error"))
	}
}
