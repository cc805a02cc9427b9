package amqpx

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"
)

// HandlerTimeout bounds the run time of the method's handler in place of [WithMaxHandlerTime], up or
// down, with the same consequences; it must be more than 0. The caller's deadline still applies
// if it is earlier.
func HandlerTimeout(d time.Duration) HandleOption {
	return func(m *serverMethod) {
		if d <= 0 {
			m.fault = fmt.Errorf("handler timeout %v: want more than 0", d)
		}
		m.maxTime = d
	}
}

// MaxConcurrent bounds how many handlers of the method run at once in a server, 1 or more; without
// the option only [WithWorkers] bounds them. A request beyond the bound is refused, because a
// waiting request would hold a worker that other methods need. The refusal, like that of [Refuse],
// has [CodeResourceExhausted] and a hint when a handler is likely to have returned, so a client
// retries the call, at any server of the queue, within its deadline and the retry budget.
// Middleware runs before the bound is checked; duplicates of a running request do not count
// ([WithDedup]). A one-way request, whose caller learns of no refusal, waits with its worker.
func MaxConcurrent(n int) HandleOption {
	return func(m *serverMethod) {
		if n < 1 {
			m.fault = fmt.Errorf("max concurrent %d: want at least 1", n)
			return
		}
		m.slots = &handlerSlots{method: m.name, used: make(chan struct{}, n)}
	}
}

// handlerSlots bounds the running handlers of a method. Safe for concurrent use.
type handlerSlots struct {
	method  string
	used    chan struct{} // has an element for each running handler
	average atomic.Int64  // of the time of a handler, in ns
}

// Bounds of the hint with a refusal.
const (
	slotHintMin = 5 * time.Millisecond
	slotHintMax = time.Second
)

// limit returns h within the bound.
func (s *handlerSlots) limit(h Handler) Handler {
	return func(ctx context.Context, req *Request) ([]byte, error) {
		select {
		case s.used <- struct{}{}:
		default:
			if !req.OneWay {
				hint := min(max(time.Duration(s.average.Load())/time.Duration(cap(s.used)), slotHintMin), slotHintMax)
				return nil, Refuse(CodeResourceExhausted, "%d handlers of method %q run already", cap(s.used), s.method).WithRetryAfter(hint)
			}
			select {
			case s.used <- struct{}{}:
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		}
		begun := time.Now()
		defer func() {
			average := s.average.Load() // concurrent updates may be lost, which does no harm to an estimate
			s.average.Store(average + (int64(time.Since(begun))-average)/loadWeight)
			<-s.used
		}()
		return h(ctx, req)
	}
}

// maxTimeOf returns the time limit of a method's handler; 0 if there is none.
func (s *Server) maxTimeOf(m *serverMethod) time.Duration {
	if m.maxTime > 0 {
		return m.maxTime
	}
	return s.cfg.maxHandlerTime
}

// limitsHandlers reports whether any handler has a time limit.
func (s *Server) limitsHandlers() bool {
	for _, m := range s.methods {
		if s.maxTimeOf(m) > 0 {
			return true
		}
	}
	return false
}

// watchPause returns the pause between two checks of the running handlers.
func (s *Server) watchPause() time.Duration {
	pause := watchPauseMax
	for _, m := range s.methods {
		if limit := s.maxTimeOf(m); limit > 0 {
			pause = min(pause, max(limit/4, 10*time.Millisecond))
		}
	}
	return pause
}
