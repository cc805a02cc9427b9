package amqpx

import (
	"bytes"
	"context"
	"errors"
	"iter"
	"strconv"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"rabbitmq-rpc/pkg/amqpx/internal/wire"
)

// ServerResponse is the response of one server to a call to all servers ([Client.CallAll]).
type ServerResponse struct {
	// Response is the result; its Body is nil for a failure.
	Response

	// Server is the id of the server, as in [ServerInfo].
	Server string
	// QueueTime is how long the request waited in the server for a worker, HandlerTime how long the
	// handler ran.
	QueueTime, HandlerTime time.Duration
}

// CallAll calls a method on every server of the request queue at once, and returns their
// responses in the order of their arrival. The error beside a response is that of the handler, or
// [CodeUnimplemented] or [CodeFailedPrecondition] with [DidNotRun] if the server does not have
// the method, or not for calls to all servers. Only servers with at least one method registered
// with [OnEveryServer] receive such calls.
//
// The number of servers is unknown, so the sequence lasts until the loop ends, for example after
// enough responses, or until the deadline of ctx, [CallTimeout] or [WithTimeout]. The deadline is
// an error only if no server has responded. An error of the call comes with a nil response, as the
// last element: [ErrUnroutable] without servers, [ErrNotConnected] at once without a connection,
// [ErrClosed]; nothing is sent again. A loop that ends before the deadline, and a cancellation of
// ctx, cancel the call at all servers, like the cancellation of a call to one server
// ([WithControl]): the contexts of running handlers end. Nothing is sent before the sequence is
// ranged over; each range is a separate call, and passes the middleware once.
//
// The user of the client needs write permission for the exchange "<queue>.control.all", which the
// permissions for calls do not include (docs/security.md); without it the error has
// [CodePermissionDenied] and [DidNotRun]. Options about batches, shards, retries, hedges and
// waiting for a server have no effect; [WithCallInfo] is an error with [CodeInvalidArgument].
func (c *Client) CallAll(ctx context.Context, method string, body []byte, opts ...CallOption) iter.Seq2[*ServerResponse, error] {
	return func(yield func(*ServerResponse, error) bool) {
		g := &gathering{yield: yield}
		if err := c.gather(ctx, g, method, body, opts); err != nil && !g.over {
			yield(nil, err)
		}
	}
}

// gathering is a call to all servers.
type gathering struct {
	yield func(*ServerResponse, error) bool
	count int  // of responses
	over  bool // the loop has ended
	timed bool // the time is over: servers know the deadline
}

// gather makes a call to all servers, and returns the error of the call itself.
func (c *Client) gather(ctx context.Context, g *gathering, method string, body []byte, opts []CallOption) error {
	if err := c.checkCall(ctx, opts); err != nil {
		return err
	}
	if !c.calls.Enter() {
		return c.refused(method)
	}
	defer c.calls.Leave()
	watched := c.observe(method)
	req, timeout, mistake := c.newRequest(method, body, opts)
	if mistake == nil && req.sent.info != nil {
		mistake = errCallAllInfo
	}
	if mistake != nil {
		err := misused(mistake)
		c.recordCall(watched, err)
		return err
	}
	if timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, timeout)
		defer cancel()
	}
	req.sent.all = g
	h := c.handlerOf(ctx, &req)
	if h == nil {
		h = c.inner
	}
	_, err := h(ctx, &req)
	c.recordCall(watched, err)
	return err
}

// run publishes the request and gathers the responses. It is called by the innermost handler.
func (g *gathering) run(ctx context.Context, c *Client, req *Request) error {
	if g.over { // middleware sends the request again
		return nil
	}
	deadline, bounded := ctx.Deadline()
	if !bounded {
		deadline = time.Now().Add(c.cfg.timeout)
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadline(ctx, deadline)
		defer cancel()
	}
	k := &call{route: &c.route}
	if err := k.setRequest(req, c.cfg.maxMessageSize); err != nil {
		return localError(CodeInvalidArgument, DidNotRun, nil, err.Error(), err)
	}
	k.req.body = bytes.Clone(k.req.body) // it belongs to the caller when the loop has ended
	s := c.sup.Current()
	switch st := c.Status(); {
	case st.State == StateClosed, c.pending.isClosed():
		return localError(CodeUnavailable, DidNotRun, ErrClosed, "")
	case s == nil:
		return notConnected(st)
	case st.State == StateBlocked:
		return localError(CodeUnavailable, DidNotRun, ErrBlocked, st.Reason)
	}
	responses := make(chan *amqp.Delivery)
	q := &clientQuery{query: newQuery(k.req.text(), nil), conn: s.Pub, exchange: c.cfg.queue.allExchange(), user: c.route.user.get()}
	q.request = func() amqp.Publishing {
		w := k.req.onWire()
		w.WantsTimes = true // and the id of the server
		return w.Publishing("", max(time.Until(deadline), 0), false)
	}
	q.received = func(d *amqp.Delivery) {
		select {
		case responses <- d:
		case <-q.over:
		}
	}
	if c.cancels != nil {
		q.left = func(replies string) {
			if !g.timed {
				c.cancels.add(cancellation{wire.Cancellation{ID: q.id, Method: req.Method, Key: k.req.key()}, replies})
			}
		}
	}
	if c.cfg.replyMode == ReplyQueue { // otherwise the user may lack the permission for reply queues
		q.replies = c.newReplyQueueName()
	}
	defer close(q.over)
	if !c.pending.unlessClosed(func() { c.futures.Go(q.run) }) { // ends with over, at the latest with the connection
		return localError(CodeUnavailable, DidNotRun, ErrClosed, "")
	}
	return g.await(ctx, c, q, responses)
}

// await passes the responses on until the loop or the call ends.
func (g *gathering) await(ctx context.Context, c *Client, q *clientQuery, responses <-chan *amqp.Delivery) error {
	for !g.over {
		select {
		case d := <-responses:
			if d.CorrelationId == q.id {
				g.count++
				g.over = !g.yield(c.serverResponse(d))
			}
		case err := <-q.failed:
			return err
		case <-c.closing:
			return localError(CodeUnavailable, MayHaveRun, ErrClosed, "")
		case <-ctx.Done():
			g.timed = errors.Is(ctx.Err(), context.DeadlineExceeded)
			if g.count > 0 && g.timed {
				return nil
			}
			return noAnswer(ctx, c.Status())
		}
	}
	return nil
}

// serverResponse returns the response of a server and its error.
func (c *Client) serverResponse(d *amqp.Delivery) (*ServerResponse, error) {
	a := wire.DecodeResponse(d)
	r := &ServerResponse{Response: *newResponse(&a), Server: string(a.Server), QueueTime: a.Times.Queue, HandlerTime: a.Times.Handler}
	switch {
	case a.Failure != nil:
		r.Body = nil
		return r, errorOf(a.Failure)
	case c.route.check != nil:
		k := &call{route: &c.route}
		if failed := k.check(&a); failed != nil {
			return r, failed
		}
	}
	return r, nil
}

// question returns the message of a query of the control plane.
func (q *clientQuery) question() amqp.Publishing {
	return amqp.Publishing{AppId: q.id, CorrelationId: q.id, Expiration: strconv.FormatInt(questionExpires.Milliseconds(), 10)}
}
