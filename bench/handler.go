package main

import (
	"context"
	"fmt"
	"sync"
	"time"
)

// Methods of every server.
const (
	methodQuick = "b"    // expects requestBody, returns answerBody
	methodSlow  = "slow" // the same after slowness
	methodEcho  = "echo" // returns the request body
	methodHold  = "hold" // like methodQuick, but only after release
)

// Bodies of calls of a fixed size.
const (
	requestBody = "request"
	answerBody  = "b"
)

// slowness is the run time of a slow call.
const slowness = 200 * time.Millisecond

// handler is the handler of every contender's server.
type handler struct {
	sleep time.Duration // of every call

	once     sync.Once
	released chan struct{}
}

func newHandler(sleep time.Duration) *handler {
	return &handler{sleep: sleep, released: make(chan struct{})}
}

// release lets the held calls continue, and all later calls of methodHold.
func (h *handler) release() { h.once.Do(func() { close(h.released) }) }

// answer handles one call.
func (h *handler) answer(ctx context.Context, method string, body []byte) ([]byte, error) {
	if h.sleep > 0 {
		if err := pause(ctx, h.sleep); err != nil {
			return nil, err
		}
	}
	switch method {
	case methodEcho:
		return body, nil
	case methodQuick:
	case methodSlow:
		if err := pause(ctx, slowness); err != nil {
			return nil, err
		}
	case methodHold:
		select {
		case <-h.released:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	default:
		return nil, fmt.Errorf("no method %q", method)
	}
	if string(body) != requestBody {
		return nil, fmt.Errorf("%d bytes of body: want %q", len(body), requestBody)
	}
	return []byte(answerBody), nil
}

// pause waits until d has passed or ctx ends.
func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
