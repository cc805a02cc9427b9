package process

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"rabbitmq-rpc/bench/contender"
)

func TestHeldCalls(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := &scripted{takes: func(int, string) time.Duration { return 10 * time.Second }}
		h, err := holdCalls(t.Context(), s, 100, false)
		if err != nil {
			t.Fatal(err)
		}
		o, err := h.settle(t.Context())
		if err != nil || o.Calls != 100 || o.Elapsed != 10*time.Second {
			t.Errorf("%d calls in %v, %v, want 100 in 10s", o.Calls, o.Elapsed, err)
		}
	})
}

func TestHeldCallsMustBeHeld(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		if _, err := holdCalls(t.Context(), &scripted{}, 3, false); err == nil {
			t.Error("calls that settled by themselves were taken for held ones")
		}
		synctest.Wait()
	})
}

// futures is a scripted caller that implements starter.
type futures struct{ scripted }

type future struct {
	done     chan struct{}
	response []byte
	err      error
}

// Start implements starter.
func (f *futures) Start(ctx context.Context, method string, body []byte) contender.Started {
	u := &future{done: make(chan struct{})}
	go func() { // ends with the call; awaited by Wait
		defer close(u.done)
		u.response, u.err = f.Call(ctx, method, body)
	}()
	return u
}

// Done implements started.
func (u *future) Done() <-chan struct{} { return u.done }

// Wait implements started.
func (u *future) Wait() ([]byte, error) {
	<-u.done
	return u.response, u.err
}

func TestHeldCallsWithoutGoroutines(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := &futures{}
		f.takes = func(int, string) time.Duration { return 10 * time.Second }
		h, err := holdCalls(t.Context(), f, 100, true)
		if err != nil {
			t.Fatal(err)
		}
		if o, err := h.settle(t.Context()); err != nil || o.Calls != 100 || o.Elapsed != 10*time.Second {
			t.Errorf("%d calls in %v, %v, want 100 in 10s", o.Calls, o.Elapsed, err)
		}
		if _, err := holdCalls(t.Context(), &futures{}, 3, true); err == nil {
			t.Error("calls that settled by themselves were taken for held ones")
		}
		f = &futures{}
		f.takes, f.body = func(int, string) time.Duration { return 10 * time.Second }, "c"
		if h, err = holdCalls(t.Context(), f, 3, true); err != nil {
			t.Fatal(err)
		}
		if _, err := h.settle(t.Context()); err == nil {
			t.Error("a wrong response was taken for a right one")
		}
	})
}

func TestCallersThatNeedGoroutines(t *testing.T) {
	t.Parallel()
	if _, err := holdCalls(t.Context(), &scripted{}, 3, true); err == nil {
		t.Error("a caller without futures was taken for one that has them")
	}
}
