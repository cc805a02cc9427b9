package lifecycle

import (
	"context"
	"os"
	"syscall"
	"testing"
	"testing/synctest"
)

func TestSignalsInTurn(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		received := make(chan os.Signal, 2)
		released := 0
		drain, force, stop := watch(t.Context(), received, func() { released++ })
		defer stop()
		synctest.Wait()
		if drain.Err() != nil || force.Err() != nil || released != 0 {
			t.Fatal("stopped without a signal")
		}
		received <- syscall.SIGTERM
		synctest.Wait()
		if drain.Err() == nil || force.Err() != nil || released != 0 {
			t.Fatal("the first signal must end drain only")
		}
		received <- syscall.SIGINT
		synctest.Wait()
		if force.Err() == nil {
			t.Fatal("the second signal must end force")
		}
		if released != 1 {
			t.Fatal("a third signal would not have its usual effect")
		}
	})
}

func TestSignalsEndWithParent(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		parent, cancel := context.WithCancel(t.Context())
		drain, force, stop := watch(parent, make(chan os.Signal), func() {})
		cancel()
		synctest.Wait()
		if drain.Err() == nil || force.Err() == nil {
			t.Error("the contexts outlive their parent")
		}
		stop()
	})
}

func TestSignalsStop(t *testing.T) {
	t.Parallel()
	released := 0
	drain, force, stop := watch(t.Context(), make(chan os.Signal), func() { released++ })
	stop()
	if drain.Err() == nil || force.Err() == nil || released != 1 {
		t.Error("stop left something behind")
	}
}

// Not parallel: the signals reach the whole test process.
//
//nolint:paralleltest // see above
func TestSignalsOfTheProcess(t *testing.T) {
	drain, force, stop := Signals(t.Context())
	defer stop()
	for i, c := range []struct {
		signal syscall.Signal
		done   <-chan struct{}
	}{{syscall.SIGTERM, drain.Done()}, {syscall.SIGINT, force.Done()}} {
		if err := syscall.Kill(os.Getpid(), c.signal); err != nil {
			t.Fatal(err)
		}
		<-c.done
		if i == 0 && force.Err() != nil {
			t.Fatal("the first signal ended force")
		}
	}
}
