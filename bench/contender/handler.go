package contender

import (
	"context"
	"fmt"
	"sync"
	"time"
)

// Methods of every server.
const (
	MethodQuick = "b"    // expects requestBody, returns answerBody
	MethodSlow  = "slow" // the same after slowness
	MethodEcho  = "echo" // returns the request body
	MethodHold  = "hold" // like methodQuick, but only after release

	MethodUrgent = "urgent" // like methodQuick; Environment.Priority is its priority
)

// Bodies of calls of a fixed size.
const (
	RequestBody  = "request"
	ResponseBody = "b"
)

// SlowTime is the run time of a slow call.
const SlowTime = 200 * time.Millisecond

// Handler is the handler of every contender's server.
type Handler struct {
	sleep time.Duration // of every call

	once     sync.Once
	released chan struct{}
}

// NewHandler returns a handler whose calls take the given time.
func NewHandler(sleep time.Duration) *Handler {
	return &Handler{sleep: sleep, released: make(chan struct{})}
}

// Release lets the held calls continue, and all later calls of MethodHold.
func (h *Handler) Release() { h.once.Do(func() { close(h.released) }) }

// Answer handles one call.
func (h *Handler) Answer(ctx context.Context, method string, body []byte) ([]byte, error) {
	if h.sleep > 0 {
		if err := Pause(ctx, h.sleep); err != nil {
			return nil, err
		}
	}
	switch method {
	case MethodEcho:
		return body, nil
	case MethodQuick, MethodUrgent:
	case MethodSlow:
		if err := Pause(ctx, SlowTime); err != nil {
			return nil, err
		}
	case MethodHold:
		select {
		case <-h.released:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	default:
		return nil, fmt.Errorf("no method %q", method)
	}
	if string(body) != RequestBody {
		return nil, fmt.Errorf("%d bytes of body: want %q", len(body), RequestBody)
	}
	return []byte(ResponseBody), nil
}

// Pause waits until d has passed or ctx ends.
func Pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
