package amqpx

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"rabbitmq-rpc/pkg/amqpx/internal/publish"
	"rabbitmq-rpc/pkg/amqpx/internal/transport"
	"rabbitmq-rpc/pkg/amqpx/internal/wire"
	"rabbitmq-rpc/pkg/amqpx/internal/xsync"
)

// cancels holds the canceled calls that a server may have received. The control plane tells
// the servers, which then end the handlers' contexts. Before the first cancellation nothing is
// opened or sent. Safe for concurrent use.
type cancels struct {
	wake chan struct{} // has a token while calls wait

	mu      sync.Mutex
	waiting []wire.Cancellation
}

// maxCancels bounds the canceled calls waiting to be published. The handlers of further
// canceled calls run to their end.
const maxCancels = 4096

func newCancels() *cancels { return &cancels{wake: make(chan struct{}, 1)} }

// add queues the cancellation of a call. It never blocks.
func (c *cancels) add(canceled wire.Cancellation) {
	c.mu.Lock()
	if len(c.waiting) < maxCancels {
		c.waiting = append(c.waiting, canceled)
	}
	c.mu.Unlock()
	offerToken(c.wake)
}

// take returns and removes the waiting calls.
func (c *cancels) take() []wire.Cancellation {
	c.mu.Lock()
	defer c.mu.Unlock()
	all := c.waiting
	c.waiting = nil
	return all
}

// sendCancel queues a cancellation if the caller canceled the call and a server may have the
// request. An expired call needs no cancellation: servers know its deadline.
func (c *Client) sendCancel(req *wire.Request, cause error, outcome Outcome) {
	if c.cancels != nil && outcome == MayHaveRun && errors.Is(cause, context.Canceled) {
		c.cancels.add(wire.Cancellation{ID: req.ID, Method: req.Method, Key: req.Key})
	}
}

// publishCancels publishes cancellations while a session lasts. It uses its own channel,
// because a missing exchange ends the channel; the looks for the exchange have growing pauses.
func (c *Client) publishCancels(s *transport.Session) {
	var ch transport.Channel
	missing := xsync.NewBackoff(lookEvery, lookMissingMax)
	var notBefore time.Time
	for {
		select {
		case <-c.cancels.wake:
		case <-s.Done:
			return
		}
		waiting := c.cancels.take()
		if s.Flow.Unblocked() != nil || time.Now().Before(notBefore) {
			continue // the handlers run to their end
		}
		if ch == nil || ch.IsClosed() {
			var err error
			if ch, err = openControl(s.Pub, c.cfg.queue.controlExchange()); err != nil {
				ch, notBefore = nil, time.Now().Add(max(missing.NextBackOff(), lookEvery))
				continue
			}
			missing.Reset()
		}
		for len(waiting) > 0 {
			var msg amqp.Publishing
			msg, waiting = encodeCancel(waiting)
			c.signCancel(&msg)
			if ch.PublishFanout(c.cfg.queue.controlExchange(), msg) != nil {
				break // the next cancellation opens another channel
			}
		}
	}
}

// signCancel adds the identity of this client to a cancellation: servers end only calls of the
// same user and reply_to. The address of direct reply-to is not known here, and belongs to
// another channel: in this mode the ids alone, which cannot be guessed, prove the ownership.
func (c *Client) signCancel(msg *amqp.Publishing) {
	msg.UserId = c.route.user.get()
	if c.cfg.replyMode == ReplyQueue {
		msg.ReplyTo = c.route.replyTo
	}
}

// openControl opens a channel for publishing to the control plane's exchange, which must
// exist.
func openControl(l transport.Conn, exchange string) (transport.Channel, error) {
	ch, err := l.Channel()
	if err != nil {
		return nil, err
	}
	return ch, ch.ExchangeDeclarePassive(exchange, amqp.ExchangeFanout, true, false, false, false, nil)
}

// encodeCancel returns a message with as many calls as fit into a batch, and the remaining
// calls.
func encodeCancel(calls []wire.Cancellation) (msg amqp.Publishing, rest []wire.Cancellation) {
	var body []byte
	n := 0
	for ; n < len(calls) && n < publish.MaxBatchMessages && len(body) < publish.MaxBatchBytes; n++ {
		body = calls[n].AppendTo(body)
	}
	return amqp.Publishing{AppId: wire.ControlCancel, ContentType: wire.ContentTypeRequests, Body: body}, calls[n:]
}

const (
	// fleetQuiet is how long no further server answers before the list counts as complete: the
	// number of servers is unknown.
	fleetQuiet = 500 * time.Millisecond
	// maxInstances bounds the list.
	maxInstances = 10_000
)

// Servers asks every server of the request queue to describe itself, and returns the answers,
// sorted by name and then by age. The list does not include servers in other languages and
// servers without [WithControl]. Servers waits until no further server has answered for half a
// second, the client's timeout is over, or ctx ends; if any server has answered by then, the
// error is nil.
//
// An error is an [*Error]. Without a server it matches [ErrUnroutable], without a connection
// [ErrNotConnected] or [ErrBlocked].
func (c *Client) Servers(ctx context.Context) ([]ServerInfo, error) {
	if err := c.check(ctx); err != nil {
		return nil, err
	}
	byID := make(map[string]ServerInfo)
	latest := time.Now().Add(c.cfg.timeout) // a fixed bound, as a forger may send answers without end
	quiet := time.NewTimer(c.cfg.timeout)
	defer quiet.Stop()
	err := c.ask(ctx, wire.ControlStats, quiet.C, func(in *ServerInfo) (more bool) {
		if _, known := byID[in.ID]; !known {
			quiet.Reset(min(fleetQuiet, time.Until(latest)))
		}
		byID[in.ID] = *in
		return len(byID) < maxInstances
	})
	if len(byID) == 0 && err != nil {
		return nil, err
	}
	all := make([]ServerInfo, 0, len(byID))
	for _, in := range byID {
		all = append(all, in)
	}
	slices.SortFunc(all, func(a, b ServerInfo) int {
		if byName := strings.Compare(a.Name, b.Name); byName != 0 {
			return byName
		}
		if byAge := a.Started.Compare(b.Started); byAge != 0 {
			return byAge
		}
		return strings.Compare(a.ID, b.ID)
	})
	return all, nil
}

// Ping asks the servers of the request queue for a sign of life, and returns the round-trip
// time of the first answer. Ping is meant for health checks at a low rate; the errors are
// those of [Client.Servers].
func (c *Client) Ping(ctx context.Context) (took time.Duration, err error) {
	if err := c.check(ctx); err != nil {
		return 0, err
	}
	begun := time.Now()
	timer := time.NewTimer(c.cfg.timeout)
	defer timer.Stop()
	answered := false
	err = c.ask(ctx, wire.ControlPing, timer.C, func(*ServerInfo) (more bool) {
		took, answered = time.Since(begun), true
		return false
	})
	if answered {
		return took, nil
	}
	return 0, err
}

// ask sends a question to every server and calls take with each answer, until take returns
// false, enough has a value, or ctx ends.
func (c *Client) ask(ctx context.Context, question string, enough <-chan time.Time, take func(*ServerInfo) (more bool)) error {
	s := c.sup.Current()
	switch st := c.Status(); {
	case st.State == StateClosed:
		return localError(CodeUnavailable, DidNotRun, ErrClosed, "")
	case s == nil:
		return notConnected(st)
	case st.State == StateBlocked:
		return localError(CodeUnavailable, DidNotRun, ErrBlocked, st.Reason)
	}
	return c.askThrough(ctx, s.Pub, question, enough, take)
}

// askThrough is ask on the given open connection.
func (c *Client) askThrough(ctx context.Context, l transport.Conn, question string, enough <-chan time.Time, take func(*ServerInfo) (more bool)) error {
	q := &query{
		conn: l, exchange: c.cfg.queue.controlExchange(), question: question,
		answers: make(chan amqp.Delivery), failed: make(chan error, 1), over: make(chan struct{}),
	}
	defer close(q.over)
	begun := time.Now()
	if !c.pending.unlessClosed(func() { c.futures.Go(q.run) }) { // ends with over, at the latest with the connection
		return localError(CodeUnavailable, DidNotRun, ErrClosed, "")
	}
	for {
		select {
		case d := <-q.answers:
			var in ServerInfo
			if d.CorrelationId != question || json.Unmarshal(d.Body, &in) != nil {
				continue // not from a server of this package
			}
			in.RoundTripMS = float64(time.Since(begun).Microseconds()) / float64(time.Millisecond/time.Microsecond)
			if !take(&in) {
				return nil
			}
		case err := <-q.failed:
			return err
		case <-enough:
			return localError(CodeDeadlineExceeded, MayHaveRun, nil, "no server responded")
		case <-ctx.Done():
			return noAnswer(ctx, c.Status())
		}
	}
}

// query is a question to the servers, with its own channel and queue, so that a fault of the
// query does not affect calls.
type query struct {
	conn               transport.Conn
	exchange, question string
	answers            chan amqp.Delivery
	failed             chan error
	over               chan struct{}
}

// run asks the question and passes the answers on until the query is over. The calls to the
// broker take no context; they end with the connection.
func (q *query) run() {
	ch, err := openControl(q.conn, q.exchange)
	if ch != nil {
		defer ch.Close() //nolint:errcheck // it may be closed by its failure.
	}
	if err == nil {
		err = q.collect(ch)
	}
	if err != nil {
		q.failed <- q.wrapError(err)
	}
}

// collect publishes the question and reads the answers.
func (q *query) collect(ch transport.Channel) error {
	replies, err := ch.QueueDeclare("", false, true, true, false, nil)
	if err != nil {
		return err
	}
	answers, err := ch.Consume(replies.Name, "", true, true, false, false, nil)
	if err != nil {
		return err
	}
	returned := ch.NotifyReturn(make(chan amqp.Return, 1))
	if err := ch.PublishFanout(q.exchange, amqp.Publishing{
		AppId: q.question, ReplyTo: replies.Name, CorrelationId: q.question,
		Expiration: strconv.FormatInt(questionExpires.Milliseconds(), 10),
	}); err != nil {
		return err
	}
	for {
		select {
		case d, ok := <-answers:
			if !ok {
				return transport.ErrConnectionEnded
			}
			select {
			case q.answers <- d:
			case <-q.over:
				return nil
			}
		case <-returned:
			return errNoServerListens
		case <-q.over:
			return nil
		}
	}
}

// questionExpires is how long a question waits for a busy server.
const questionExpires = 10 * time.Second

// errNoServerListens means that no server has a queue at the exchange.
var errNoServerListens = errors.New("no server listens")

// wrapError returns the error of a failed query.
func (q *query) wrapError(err error) error {
	var refused *amqp.Error
	if errors.Is(err, errNoServerListens) || errors.As(err, &refused) && refused.Code == amqp.NotFound {
		return localError(CodeUnavailable, DidNotRun, ErrUnroutable, fmt.Sprintf("no server listens at exchange %q", q.exchange))
	}
	return localError(CodeUnavailable, MayHaveRun, ErrNotConnected, err.Error(), err)
}
