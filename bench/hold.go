package main

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"
)

// starter is a caller whose calls need no goroutine while they wait.
type starter interface {
	start(ctx context.Context, method string, body []byte) started
}

// started is such a call.
type started interface {
	// Done returns a channel that is closed when the call has settled.
	Done() <-chan struct{}
	// Wait waits for the answer.
	Wait() ([]byte, error)
}

// held is calls that stay in flight until the server releases them.
type held struct {
	calls   int
	begun   time.Time
	settled chan error // one for each call in a goroutine
	started []started  // the calls that have none
}

// settling is how long held calls are left alone once all have begun, so that what
// was gathered on the way is sent.
const settling = time.Second

// holdCalls begins that many calls, each in a goroutine or, when async, without one, and
// returns when all are in flight.
func holdCalls(ctx context.Context, c caller, calls int, async bool) (*held, error) {
	h := &held{calls: calls, begun: time.Now()}
	if async {
		s, ok := c.(starter)
		if !ok {
			return nil, errors.New("its calls need goroutines")
		}
		h.started = make([]started, calls)
		for i := range h.started {
			h.started[i] = s.start(ctx, methodHold, []byte(requestBody))
		}
	} else if err := h.inGoroutines(ctx, c); err != nil {
		return nil, err
	}
	if err := pause(ctx, settling); err != nil {
		return nil, err
	}
	return h, h.stillHeld()
}

// inGoroutines begins all calls.
func (h *held) inGoroutines(ctx context.Context, c caller) error {
	h.settled = make(chan error, h.calls)
	var begun atomic.Int64
	for range h.calls {
		go func() { // settles within the call's deadline; awaited by settle
			begun.Add(1)
			h.settled <- checkedCall(ctx, c, methodHold, []byte(requestBody), []byte(answerBody))
		}()
	}
	for begun.Load() < int64(h.calls) {
		if err := pause(ctx, time.Millisecond); err != nil {
			return err
		}
	}
	return nil
}

// stillHeld finds calls that settled by themselves: any in a goroutine, and the first
// or last of the others, because to ask one costs memory.
func (h *held) stillHeld() error {
	early := errors.New("a held call settled before it was released")
	select {
	case err := <-h.settled:
		return errors.Join(early, err)
	default:
	}
	if len(h.started) == 0 {
		return nil
	}
	for _, s := range []started{h.started[0], h.started[len(h.started)-1]} {
		select {
		case <-s.Done():
			_, err := s.Wait()
			return errors.Join(early, err)
		default:
		}
	}
	return nil
}

// settle waits for the answers.
func (h *held) settle(ctx context.Context) (outcome, error) {
	for i := range h.calls {
		if err := h.settleOne(ctx, i); err != nil {
			return outcome{}, fmt.Errorf("held call %d: %w", i, err)
		}
	}
	return outcome{Calls: int64(h.calls), Elapsed: time.Since(h.begun)}, nil
}

func (h *held) settleOne(ctx context.Context, i int) error {
	if h.started != nil {
		got, err := h.started[i].Wait()
		return checkAnswer(got, err, []byte(answerBody))
	}
	select {
	case err := <-h.settled:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}
