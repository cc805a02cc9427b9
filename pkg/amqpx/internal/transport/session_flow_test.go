package transport

import "testing"

func TestGateSetTwice(t *testing.T) {
	t.Parallel()
	var g flow
	g.set(false)
	g.set(true)
	first := g.Unblocked()
	g.set(true)
	if g.Unblocked() != first {
		t.Error("who waits would miss the opening")
	}
	g.set(false)
	g.set(false)
	<-first
}
