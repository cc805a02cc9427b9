package process

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"rabbitmq-rpc/bench/contender"
)

// held is a set of calls in flight until the server releases them.
type held struct {
	calls   int
	begun   time.Time
	settled chan error          // receives one error for each call in a goroutine
	started []contender.Started // the calls without goroutines
}

// settling is the pause after the start of the last held call, in which the contender can send
// requests still in its buffers.
const settling = time.Second

// holdCalls starts the given number of calls, each in a goroutine or, if async is true,
// without a goroutine, and returns when all are in flight.
func holdCalls(ctx context.Context, c contender.Caller, calls int, async bool) (*held, error) {
	h := &held{calls: calls, begun: time.Now()}
	if async {
		s, ok := c.(contender.Starter)
		if !ok {
			return nil, errors.New("its calls need goroutines")
		}
		h.started = make([]contender.Started, calls)
		for i := range h.started {
			h.started[i] = s.Start(ctx, contender.MethodHold, []byte(contender.RequestBody))
		}
	} else if err := h.inGoroutines(ctx, c); err != nil {
		return nil, err
	}
	if err := contender.Pause(ctx, settling); err != nil {
		return nil, err
	}
	return h, h.stillHeld()
}

// inGoroutines starts each call in its own goroutine.
func (h *held) inGoroutines(ctx context.Context, c contender.Caller) error {
	h.settled = make(chan error, h.calls)
	var begun atomic.Int64
	for range h.calls {
		go func() { // settles within the call's deadline; awaited by settle
			begun.Add(1)
			h.settled <- checkedCall(ctx, c, contender.MethodHold, []byte(contender.RequestBody), []byte(contender.ResponseBody))
		}()
	}
	for begun.Load() < int64(h.calls) {
		if err := contender.Pause(ctx, time.Millisecond); err != nil {
			return err
		}
	}
	return nil
}

// stillHeld returns an error if a call was settled too early. All calls in goroutines are
// checked. Of the calls without goroutines only the first and the last are checked, because
// Done allocates memory for each call.
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
	for _, s := range []contender.Started{h.started[0], h.started[len(h.started)-1]} {
		select {
		case <-s.Done():
			_, err := s.Wait()
			return errors.Join(early, err)
		default:
		}
	}
	return nil
}

// settle waits for the responses.
func (h *held) settle(ctx context.Context) (Outcome, error) {
	for i := range h.calls {
		if err := h.settleOne(ctx, i); err != nil {
			return Outcome{}, fmt.Errorf("held call %d: %w", i, err)
		}
	}
	return Outcome{Calls: int64(h.calls), Elapsed: time.Since(h.begun)}, nil
}

func (h *held) settleOne(ctx context.Context, i int) error {
	if h.started != nil {
		got, err := h.started[i].Wait()
		return checkResponse(got, err, []byte(contender.ResponseBody))
	}
	select {
	case err := <-h.settled:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}
