package lifecycle

import (
	"context"
	"errors"
	"os"
	"os/signal"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
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
		for range 3 { // as from a wrapper that relays the signal
			received <- syscall.SIGTERM
		}
		<-time.After(repeatWindow - 1)
		synctest.Wait()
		if force.Err() != nil {
			t.Fatal("signals within a second must count as one")
		}
		<-time.After(1)
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
	if signal.Ignored(syscall.SIGHUP) { // the tests were started by nohup, or in the background of a shell
		signal.Notify(make(chan os.Signal, 1), syscall.SIGHUP)
		t.Cleanup(func() { signal.Ignore(syscall.SIGHUP) })
	}
	for _, first := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP} {
		drain, force, stop := Signals(t.Context())
		if err := syscall.Kill(os.Getpid(), first); err != nil {
			t.Fatal(err)
		}
		<-drain.Done()
		if force.Err() != nil {
			t.Errorf("%v ended force", first)
		}
		stop()
	}
}

// Not parallel: the signal reaches the whole test process.
//
//nolint:paralleltest // see above
func TestHangupThatIsIgnoredStaysIgnored(t *testing.T) {
	if !signal.Ignored(syscall.SIGHUP) {
		signal.Ignore(syscall.SIGHUP)
		t.Cleanup(func() { signal.Reset(syscall.SIGHUP) })
	}
	drain, _, stop := Signals(t.Context())
	defer stop()
	if err := syscall.Kill(os.Getpid(), syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	if drain.Err() != nil || !signal.Ignored(syscall.SIGHUP) {
		t.Errorf("a hangup counts: drain ended with %v", drain.Err())
	}
}

// Not parallel: SIGPIPE is a matter of the whole process.
//
//nolint:paralleltest // see above
func TestPipeThatNobodyReads(t *testing.T) {
	_, _, stop := Signals(t.Context())
	defer stop()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = w.Close() }()
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	standard, err := syscall.Dup(1)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = syscall.Close(standard) }()
	defer syscall.Dup3(standard, 1, 0) //nolint:errcheck // nothing can be done about it.
	if err := syscall.Dup3(int(w.Fd()), 1, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stdout.WriteString("nobody reads this"); !errors.Is(err, syscall.EPIPE) {
		t.Errorf("got %v, want EPIPE", err)
	}
}
