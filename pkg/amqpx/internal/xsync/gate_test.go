package xsync

import (
	"sync"
	"sync/atomic"
	"testing"
)

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

func TestGateWaitsForTheVisitsUnderWay(t *testing.T) {
	t.Parallel()
	var g Gate
	for range 2 {
		if !g.Enter() {
			t.Fatal("an open gate refused a visit")
		}
	}
	g.Leave()
	empty := g.Shut()
	if g.Enter() {
		t.Error("a shut gate let a visit in")
	}
	if isClosed(empty) {
		t.Error("empty with a visit under way")
	}
	g.Leave()
	<-empty
	<-g.Shut()
	if g.Enter() {
		t.Error("a shut gate let a visit in")
	}
}

func TestGateThatIsEmptyWhenItIsShut(t *testing.T) {
	t.Parallel()
	var g Gate
	<-g.Shut()
}

func TestGateUnderLoad(t *testing.T) {
	t.Parallel()
	for range 100 {
		var (
			g      Gate
			inside atomic.Int64
			all    sync.WaitGroup
		)
		for range 4 {
			all.Go(func() {
				for g.Enter() {
					inside.Add(1)
					inside.Add(-1)
					g.Leave()
				}
			})
		}
		<-g.Shut()
		if n := inside.Load(); n != 0 {
			t.Fatalf("%d visits inside a gate that is empty", n)
		}
		all.Wait()
	}
}
