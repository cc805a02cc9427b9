package amqpx

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
	"go.uber.org/zap"

	"rabbitmq-rpc/pkg/amqpx/internal/transport"
	"rabbitmq-rpc/pkg/amqpx/internal/wire"
	"rabbitmq-rpc/pkg/amqpx/internal/xsync"
)

const (
	// fleetQuiet is how long no further server answers before the list counts as complete: the
	// number of servers is unknown.
	fleetQuiet = 500 * time.Millisecond
	// maxInstances bounds the list.
	maxInstances = 10_000
)

// Servers asks every server of the request queue to describe itself, and returns the responses,
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
	latest := time.Now().Add(c.cfg.timeout) // a fixed bound, as a forger may send responses without end
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
// time of the first response. Ping is meant for health checks at a low rate; the errors are
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

// ask sends a question to every server and calls take with each response, until take returns
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
	q := &clientQuery{query: newQuery(question, nil), conn: l, exchange: c.cfg.queue.controlExchange(), user: c.route.user.get()}
	q.request, q.received = q.question, q.passOn
	if c.cfg.replyMode == ReplyQueue { // otherwise the user may lack the permission for reply queues
		q.replies = c.newReplyQueueName()
	}
	defer close(q.over)
	if !c.pending.unlessClosed(func() { c.futures.Go(q.run) }) { // ends with over, at the latest with the connection
		return localError(CodeUnavailable, DidNotRun, ErrClosed, "")
	}
	return q.await(ctx, c.Status, enough, take)
}

// clientQuery is a query with its own channel and queue, so that a fault of the query does not
// affect calls. The id is the question.
type clientQuery struct {
	query

	conn     transport.Conn
	exchange string
	replies  string // the name of the query's queue; "": the broker makes a name
	user     string // the broker's user; "" if it is not verified
	// request returns the message without reply_to and user, and received gets the responses.
	request  func() amqp.Publishing
	received func(*amqp.Delivery)
	// left gets the queue for the responses when the asker does not wait any more; may be nil.
	left func(replies string)
}

// run asks the question and passes the responses on until the query is over. The calls to the
// broker take no context; they end with the connection.
func (q *clientQuery) run() {
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

// openControl opens a channel for publishing to the control plane's exchange, which must
// exist.
func openControl(l transport.Conn, exchange string) (transport.Channel, error) {
	ch, err := l.Channel()
	if err != nil {
		return nil, err
	}
	return ch, ch.ExchangeDeclarePassive(exchange, amqp.ExchangeFanout, true, false, false, false, nil)
}

// collect publishes the question and reads the responses.
func (q *clientQuery) collect(ch transport.Channel) error {
	replies, err := ch.QueueDeclare(q.replies, false, true, true, false, nil)
	if err != nil {
		return err
	}
	responses, err := ch.Consume(replies.Name, "", true, true, false, false, nil)
	if err != nil {
		return err
	}
	returned, ended := ch.NotifyReturn(make(chan amqp.Return, 1)), ch.NotifyClose(make(chan *amqp.Error, 1))
	select {
	case <-q.over:
		return nil
	default:
	}
	msg := q.request()
	msg.ReplyTo, msg.UserId = replies.Name, q.user
	if err := ch.PublishFanout(q.exchange, msg); err != nil {
		return err
	}
	for {
		select {
		case d, ok := <-responses:
			if !ok {
				responses = nil // the end of the channel has the reason
				continue
			}
			q.received(&d)
		case refused := <-ended:
			if refused == nil {
				return transport.ErrConnectionEnded
			}
			return refused
		case <-returned:
			return errNoServerListens
		case <-q.over:
			if q.left != nil {
				q.left(replies.Name)
			}
			return nil
		}
	}
}

// questionExpires is how long a question waits for a busy server.
const questionExpires = 10 * time.Second

// errNoServerListens means that no server has a queue at the exchange.
var errNoServerListens = errors.New("no server listens")

// wrapError returns the error of a failed query.
func (q *clientQuery) wrapError(err error) error {
	var refused *amqp.Error
	if errors.As(err, &refused) && refused.Code == amqp.AccessRefused {
		return localError(CodePermissionDenied, DidNotRun, nil, err.Error(), err)
	}
	if errors.Is(err, errNoServerListens) || errors.As(err, &refused) && refused.Code == amqp.NotFound {
		return localError(CodeUnavailable, DidNotRun, ErrUnroutable, fmt.Sprintf("no server listens at exchange %q", q.exchange))
	}
	return localError(CodeUnavailable, MayHaveRun, ErrNotConnected, err.Error(), err)
}

// A node on the wrong side of a cluster's partition, such as a node that was suspended for a
// while, keeps its connections open and answers everything it can answer alone. A client of
// this node is ready, and none of its calls gets a response, while the other nodes serve.
// Therefore a client that knows several nodes and receives no response asks whether servers
// answer, first on its own node, then on the others, and moves to a node where servers answer.

const (
	// unansweredFirst, unansweredGrowth and maxUnansweredPause bound the time without a
	// response before the client asks. The time grows with each question until a response
	// arrives: a client without any servers asks less and less often, and a client that has
	// left a node in vain stays longer.
	unansweredFirst    = 10 * time.Second
	unansweredGrowth   = 3
	maxUnansweredPause = 5 * time.Minute
	// unansweredCalls is the number of calls that must have failed without a response
	// meanwhile.
	unansweredCalls = 3
	// unansweredCheck is the pause between two checks of these bounds.
	unansweredCheck = time.Second
	// servedLimit is the time limit for the responses of servers, and of a node.
	servedLimit = 3 * time.Second
)

// unanswered has the state of a client's check for calls without a response.
type unanswered struct {
	failed atomic.Int64  // calls since the last response
	wait   time.Duration // until the next question; used only by checkAnswered
}

// noteUnanswered counts a call that failed without a response, judged by its code.
func (c *Client) noteUnanswered(err error) {
	switch c.codeOf(err) {
	case CodeDeadlineExceeded, CodeUnavailable:
		c.unanswered.failed.Add(1)
	default:
	}
}

// otherNodes returns the nodes of the client's list other than the session's node, in random
// order.
func (c *Client) otherNodes(s *transport.Session) []transport.Target {
	var others []transport.Target
	for _, i := range rand.Perm(len(c.sup.Brokers)) { //nolint:gosec // spreads load, guards nothing.
		if t := c.sup.Brokers[i]; t.Address != s.Target.Address {
			others = append(others, t)
		}
	}
	return others
}

// checkAnswered ends the session when its calls get no response for a while although servers
// answer by way of another node.
func (c *Client) checkAnswered(s *transport.Session) {
	tick := time.NewTicker(unansweredCheck)
	defer tick.Stop()
	u := &c.unanswered
	since, confirmed := time.Now(), time.Time{}
	u.failed.Store(0)
	for {
		select {
		case <-tick.C:
		case <-s.Done:
			return
		}
		if s.Confirmed.Swap(false) {
			confirmed = time.Now()
		}
		if s.Answered.Swap(false) {
			since, u.wait = time.Now(), unansweredFirst
			u.failed.Store(0)
			continue
		}
		if time.Since(since) < u.wait || u.failed.Load() < unansweredCalls || s.Flow.Unblocked() != nil {
			continue
		}
		if !c.isServed(s, confirmed.After(since.Add(unansweredFirst/2))) {
			u.wait = min(unansweredGrowth*u.wait, maxUnansweredPause)
			if address, ok := c.servedElsewhere(s); ok && !s.AreOthersAnswered(since) {
				s.Fail(&transport.ServedElsewhereError{Address: address})
				return
			}
		}
		since = time.Now()
		u.failed.Store(0)
	}
}

// isServed reports whether servers receive the client's requests. Either a server answers a
// ping, which slow handlers do not prevent, or, with servers that do not know pings, the
// broker confirms requests and the queue has consumers. A node without a majority may still
// list consumers, and confirms nothing.
func (c *Client) isServed(s *transport.Session, confirmed bool) bool {
	ctx, cancel := withinSession(s, servedLimit)
	defer cancel()
	if c.isPinged(ctx, s.Pub) {
		return true
	}
	n, err := c.Consumers(ctx)
	return err == nil && n > 0 && confirmed
}

// withinSession returns a context that ends with the session, or after a while.
func withinSession(s *transport.Session, most time.Duration) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithTimeout(context.Background(), most) //nolint:forbidigo // a session lives beyond any caller's context.
	s.Run(func() {                                                 // ends with the context at the latest
		select {
		case <-s.Done:
			cancel()
		case <-ctx.Done():
		}
	})
	return ctx, cancel
}

// isPinged reports whether a server answers a ping over a connection.
func (c *Client) isPinged(ctx context.Context, l transport.Conn) (answered bool) {
	if !c.cfg.control {
		return false
	}
	_ = c.askThrough(ctx, l, wire.ControlPing, nil, func(*ServerInfo) (more bool) {
		answered = true
		return false
	})
	return answered
}

// servedElsewhere returns the address of another node where servers answer, or where the
// request queue has consumers.
func (c *Client) servedElsewhere(s *transport.Session) (address string, ok bool) {
	for _, t := range c.otherNodes(s) {
		if c.servesAt(s, t) {
			return t.Address, true
		}
		if s.Ended() {
			break
		}
	}
	return "", false
}

// returnHome ends a session away from the client's home node, after a while, if servers answer by
// way of the home node.
func (c *Client) returnHome(s *transport.Session) {
	for s.AwaitReturn(c.cfg.returnHome) {
		if c.streams.table.Counts.Open.Load() == 0 && c.servesAt(s, s.Home) { // a stream would end
			select {
			case s.Leave <- struct{}{}:
			default: // the publisher, which the broker blocks, has not taken the last token
			}
		}
	}
}

// servesAt asks a node on a new connection.
func (c *Client) servesAt(s *transport.Session, t transport.Target) bool {
	ctx, cancel := withinSession(s, min(c.cfg.dialTimeout, 2*servedLimit))
	defer cancel()
	t, _, err := c.sup.Authorize(ctx, t)
	if err != nil {
		return false
	}
	l, err := c.cfg.dialer.Dial(ctx, t.URL, c.cfg.name+" client check")
	if err != nil {
		return false
	}
	defer l.Close()
	stop := context.AfterFunc(ctx, l.Cut)
	defer stop()
	pinging, over := context.WithTimeout(ctx, servedLimit)
	defer over()
	if c.isPinged(pinging, l) {
		return true
	}
	consumers := 0
	_ = transport.WithTempChannel(l, func(ch transport.Channel) error {
		q, err := ch.QueueDeclarePassive(c.route.queue, true, false, false, false, nil)
		consumers = q.Consumers
		return err
	})
	return consumers > 0
}

// Servers of one queue may have different methods, for example during a rolling deployment. A
// call that was refused as unimplemented and did not run is sent again, alone, until a server
// has the method or all servers have refused the call. Servers name themselves in such a
// refusal (rpc-server), so that the client can count the servers. These attempts use no retry
// budget, and are bounded.

const (
	// elsewhereMax bounds a call's tries at servers that name themselves. Under load a call
	// meets the same servers again.
	elsewhereMax = 64
	// elsewhereNameless bounds the tries at servers that do not name themselves: two tries for
	// each server, and at most elsewhereNameless in total.
	elsewhereNameless = 8
	// elsewhereWaitMax bounds the wait before a try, which doubles from 1 ms.
	elsewhereWaitMax = 64 * time.Millisecond
	// nowhereFor is how long a missing method is remembered.
	nowhereFor = time.Second
	// maxMissingMethods bounds the number of remembered missing methods.
	maxMissingMethods = 1024
)

// nowhere remembers the methods missing on all servers. Safe for concurrent use.
type nowhere struct {
	mu     sync.Mutex
	recent xsync.Recent[string]
	warned loggedNames
}

// has reports whether the method was recently missing on all servers.
func (n *nowhere) has(method string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.recent.Has(method, time.Now())
}

// add records a method that no server has, and reports whether the log line is due.
func (n *nowhere) add(method string) (first bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.recent.Add(method, time.Now(), nowhereFor, maxMissingMethods)
	return n.warned.add(method)
}

// loggedNames has the names that were logged. Their number is bounded, because the names come
// from other programs. The zero value is ready to use.
type loggedNames struct{ names map[string]bool }

// loggedNamesMax bounds the logged names.
const loggedNamesMax = 100

// add records a name and reports whether to log the name.
func (l *loggedNames) add(name string) bool {
	if l.names[name] || len(l.names) >= loggedNamesMax {
		return false
	}
	if l.names == nil {
		l.names = make(map[string]bool)
	}
	l.names[name] = true
	return true
}

// mayTryElsewhere decides whether a call refused as unimplemented is sent to another server,
// after a wait.
func (c *Client) mayTryElsewhere(k *call, gone <-chan struct{}) (wait time.Duration, ok bool) {
	if id := k.refusal.server; id != "" && !slices.Contains(k.refusers, id) {
		k.refusers = append(k.refusers, id)
	}
	k.elsewhere++
	if c.nowhere.has(k.req.method) {
		return 0, false
	}
	if last := c.watch.last(); last.consumers < 2 && time.Since(last.at) > checkSoonest { // a second server may have started
		_, _ = k.awaitCheck(gone) // an event that ends the call stays unread, for the next round
	}
	servers := c.watch.last().consumers
	tries := min(2*servers, elsewhereNameless)
	if len(k.refusers) > 0 {
		tries = elsewhereMax
	}
	if servers < 2 || len(k.refusers) >= servers || int(k.elsewhere) >= tries {
		if c.nowhere.add(k.req.method) {
			c.cfg.logger.Warn("no server has the method", zap.String("method", wire.Truncate(k.req.method, wire.MaxShortString)),
				zap.String("queue", k.route.queue), zap.Int("servers", servers))
		}
		return 0, false
	}
	most := min(time.Millisecond<<min(k.elsewhere-1, 16), elsewhereWaitMax)
	wait = 1 + rand.N(most) //nolint:gosec // spreads load, guards nothing.
	return wait, time.Until(k.deadline) > wait
}
