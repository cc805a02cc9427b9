package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"time"

	"github.com/google/uuid"
	amqp "github.com/rabbitmq/amqp091-go"
)

// loop is RPC written by hand over amqp091-go: what a good engineer writes in an
// afternoon, without reconnecting, deadlines for the server or typed errors.
type loop struct {
	confirms bool // publisher confirms on both sides; else none
	split    bool // a connection each for publishing and consuming, on both sides
	direct   bool // direct reply-to instead of an exclusive reply queue
	// deadlines has messages carry what amqpx's do: the time budget as expiration and
	// header, and in answers the times in the server.
	deadlines bool
}

const (
	// loopPrefetch is ample for the loads and equal to amqpx's default.
	loopPrefetch = 128
	// loopTimeout is the deadline of calls that have one, amqpx's default.
	loopTimeout = 30 * time.Second
	// directReplyTo is https://www.rabbitmq.com/docs/direct-reply-to.
	directReplyTo = "amq.rabbitmq.reply-to"
)

func (l loop) settings() string {
	text := "amqp091-go by hand: exclusive reply queue read without acks"
	if l.direct {
		text = "amqp091-go by hand: direct reply-to"
	}
	if l.confirms {
		text += ", publisher confirms on both sides, a request acked after its answer's confirm"
	} else {
		text += ", no publisher confirms, a request acked after its answer was written"
	}
	if l.split {
		text += ", two connections each side"
	} else {
		text += ", one connection each side"
	}
	if l.deadlines {
		text += ", deadline and times in properties and headers"
	} else {
		text += ", no deadlines"
	}
	return text + fmt.Sprintf(", prefetch %d, handler inline in the consuming goroutine, transient messages", loopPrefetch)
}

// loopLink is the connections and channels of one side.
type loopLink struct {
	conns    []*amqp.Connection
	pub, sub *amqp.Channel
}

func (l loop) open(url string) (_ *loopLink, err error) {
	k := &loopLink{}
	defer func() {
		if err != nil {
			err = errors.Join(err, k.close())
		}
	}()
	if k.pub, err = k.channel(url); err != nil {
		return nil, err
	}
	k.sub = k.pub
	if l.split {
		if k.sub, err = k.channel(url); err != nil {
			return nil, err
		}
	}
	if l.confirms {
		err = k.pub.Confirm(false)
	}
	return k, err
}

// channel opens one channel on a connection of its own.
func (k *loopLink) channel(url string) (*amqp.Channel, error) {
	conn, err := amqp.Dial(url)
	if err != nil {
		return nil, err
	}
	k.conns = append(k.conns, conn)
	return conn.Channel()
}

func (k *loopLink) close() error {
	var faults []error
	for _, conn := range k.conns {
		faults = append(faults, conn.Close())
	}
	return errors.Join(faults...)
}

// serve implements contender.
func (l loop) serve(ctx context.Context, env environment, ready func()) error {
	k, err := l.open(env.URL)
	if err != nil {
		return err
	}
	s := &loopServer{deadlines: l.deadlines, link: k, unconfirmed: make(chan unconfirmedAnswer, loopPrefetch)}
	requests, err := s.consume(env.Queue)
	if err != nil {
		return errors.Join(err, k.close())
	}
	stop := context.AfterFunc(ctx, func() { _ = k.close() })
	defer stop()
	var acks sync.WaitGroup
	acks.Go(s.ackConfirmed)
	ready()
	err = s.answerAll(requests)
	close(s.unconfirmed)
	acks.Wait()
	if ctx.Err() != nil {
		return nil // the end that we asked for
	}
	return errors.Join(err, errors.New("the requests ended"), k.close())
}

type loopServer struct {
	deadlines   bool
	link        *loopLink
	unconfirmed chan unconfirmedAnswer
}

type unconfirmedAnswer struct {
	confirm *amqp.DeferredConfirmation
	request amqp.Delivery
}

func (s *loopServer) consume(queue string) (<-chan amqp.Delivery, error) {
	if _, err := s.link.sub.QueueDeclare(queue, true, false, false, false, nil); err != nil {
		return nil, err
	}
	if err := s.link.sub.Qos(loopPrefetch, 0, false); err != nil {
		return nil, err
	}
	return s.link.sub.Consume(queue, "", false, false, false, false, nil)
}

func (s *loopServer) answerAll(requests <-chan amqp.Delivery) error {
	for d := range requests {
		arrived := time.Now()
		if d.AppId != method || string(d.Body) != requestBody {
			return fmt.Errorf("request %q with body %q", d.AppId, d.Body)
		}
		answer := amqp.Publishing{CorrelationId: d.CorrelationId, Body: []byte(answerBody)}
		if s.deadlines {
			answer.Headers = amqp.Table{"rpc-queue-us": int64(0), "rpc-handler-us": time.Since(arrived).Microseconds()}
		}
		confirm, err := s.link.pub.PublishWithDeferredConfirm("", d.ReplyTo, false, false, answer)
		if err != nil {
			return err
		}
		if confirm != nil {
			s.unconfirmed <- unconfirmedAnswer{confirm, d}
		} else if err := d.Ack(false); err != nil {
			return err
		}
	}
	return nil
}

// ackConfirmed acks each request whose answer the broker confirmed.
func (s *loopServer) ackConfirmed() {
	for u := range s.unconfirmed {
		if u.confirm.Wait() {
			_ = u.request.Ack(false) // the consumer ends when the link does
		}
	}
}

// dial implements contender.
func (l loop) dial(_ context.Context, env environment) (caller, error) {
	k, err := l.open(env.URL)
	if err != nil {
		return nil, err
	}
	c := &loopCaller{deadlines: l.deadlines, link: k, queue: env.Queue, replyTo: directReplyTo, waiting: make(map[string]chan []byte), ended: make(chan struct{})}
	if !l.direct {
		q, err := k.sub.QueueDeclare("", false, false, true, false, nil)
		if err != nil {
			return nil, errors.Join(err, k.close())
		}
		c.replyTo = q.Name
	}
	answers, err := k.sub.Consume(c.replyTo, "", true, !l.direct, false, false, nil)
	if err != nil {
		return nil, errors.Join(err, k.close())
	}
	go c.read(answers) // ends when the link does
	return c, nil
}

type loopCaller struct {
	deadlines bool
	link      *loopLink
	queue     string
	replyTo   string
	ended     chan struct{} // closed when no more answers come

	mu      sync.Mutex
	waiting map[string]chan []byte
}

// read hands each answer to its caller.
func (c *loopCaller) read(answers <-chan amqp.Delivery) {
	defer close(c.ended)
	for d := range answers {
		c.mu.Lock()
		answer, ok := c.waiting[d.CorrelationId]
		delete(c.waiting, d.CorrelationId)
		c.mu.Unlock()
		if ok {
			answer <- d.Body
		}
	}
}

// call implements caller.
func (c *loopCaller) call(ctx context.Context) ([]byte, error) {
	id := uuid.NewString()
	answer := make(chan []byte, 1)
	c.mu.Lock()
	c.waiting[id] = answer
	c.mu.Unlock()
	request := amqp.Publishing{AppId: method, ReplyTo: c.replyTo, CorrelationId: id, Body: []byte(requestBody)}
	if c.deadlines {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, loopTimeout)
		defer cancel()
		budget := loopTimeout.Milliseconds()
		request.Expiration = strconv.FormatInt(budget, 10)
		request.Headers = amqp.Table{"rpc-timeout-ms": budget}
	}
	confirm, err := c.link.pub.PublishWithDeferredConfirm("", c.queue, true, false, request)
	if err != nil {
		return nil, err
	}
	if confirm != nil {
		ok, err := confirm.WaitContext(ctx)
		if err != nil || !ok {
			return nil, errors.Join(err, errors.New("not confirmed"))
		}
	}
	select {
	case body := <-answer:
		return body, nil
	case <-c.ended:
		return nil, errors.New("the answers ended")
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// close implements caller.
func (c *loopCaller) close(context.Context) error { return c.link.close() }
