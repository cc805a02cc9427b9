package amqpx

import (
	"context"
	"fmt"
	"sync"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

// selfPings are the pings of a server to itself. Safe for concurrent use; its zero value
// has no queue to ping.
type selfPings struct {
	mu    sync.Mutex
	queue string // of the control plane; "" without one
	open  map[string]chan struct{}
}

// through sets the queue that pings go through.
func (p *selfPings) through(queue string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.queue = queue
}

// begin registers a ping and returns the queue to send it to.
func (p *selfPings) begin(id string) (queue string, answered <-chan struct{}) {
	done := make(chan struct{})
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.open == nil {
		p.open = make(map[string]chan struct{})
	}
	p.open[id] = done
	return p.queue, done
}

// answered ends a ping; one that is not open is ignored.
func (p *selfPings) answered(id string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if done := p.open[id]; done != nil {
		close(done)
		delete(p.open, id)
	}
}

// giveUp forgets a ping.
func (p *selfPings) giveUp(id string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.open, id)
}

// Ping sends this server a question over the broker, answers it, and returns how long
// the answer took: both connections, the broker's routing and this server's consumer
// work then. It is for health checks at a low rate. The error is an [*Error]; it matches
// [ErrNotConnected] or [ErrBlocked] where that is why, and ctx's error.
func (s *Server) Ping(ctx context.Context) (time.Duration, error) {
	if err := s.check(ctx); err != nil {
		return 0, err
	}
	sess := s.sup.current()
	if sess == nil {
		return 0, notConnected(s.Status())
	}
	id, begun := newID(), time.Now()
	queue, answered := s.pings.begin(id)
	defer s.pings.giveUp(id)
	if queue == "" {
		return 0, localError(CodeUnimplemented, DidNotRun, nil, "this server has no control plane")
	}
	ping := &controlMessage{to: queue, msg: amqp.Publishing{AppId: controlPing, ReplyTo: queue, CorrelationId: id}}
	s.outbox.put(ping)
	select {
	case <-answered:
		return time.Since(begun), nil
	case <-sess.done:
		ping.over.Store(true)
		s.outbox.withdrew()
		return 0, localError(CodeUnavailable, MayHaveRun, ErrNotConnected, "the link was lost")
	case <-ctx.Done():
		ping.over.Store(true)
		s.outbox.withdrew()
		return 0, noAnswer(ctx, s.Status())
	}
}

// notConnected is the error of a question that cannot be asked.
func notConnected(st Status) *Error {
	if st.Err == nil {
		return localError(CodeUnavailable, DidNotRun, ErrNotConnected, st.State.String())
	}
	return localError(CodeUnavailable, DidNotRun, ErrNotConnected, st.Err.Error())
}

// noAnswer is the error of a question that nobody answered in time.
func noAnswer(ctx context.Context, st Status) *Error {
	if st.State == StateBlocked {
		return contextError(ctx.Err(), MayHaveRun, ErrBlocked, st.Reason)
	}
	return contextError(ctx.Err(), MayHaveRun, nil, fmt.Sprintf("no answer, the link is %v", st.State))
}
