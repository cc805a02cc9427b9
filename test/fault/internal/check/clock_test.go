package check_test

import (
	"testing"
	"time"

	"rabbitmq-rpc/test/fault/internal/check"
	"rabbitmq-rpc/test/fault/internal/ledger"
)

func TestClockFindsTheFirstResponseAfter(t *testing.T) {
	t.Parallel()
	var k check.Clock
	for _, d := range []time.Duration{5, 3, 1, 2} { // files are read one after the other
		k.Add(with(ended("x"), func(e *ledger.Entry) { e.At = at(d * time.Second) }))
	}
	k.Add(with(failed("y", "internal", "ran"), func(e *ledger.Entry) { e.At = at(4 * time.Second) }))
	if d, ok := k.RespondedAfter(at(3500 * time.Millisecond)); !ok || d != 1500*time.Millisecond {
		t.Errorf("got %v, %v, want 1.5s", d, ok)
	}
	if d, ok := k.RespondedAfter(at(6 * time.Second)); ok {
		t.Errorf("got %v, want nothing", d)
	}
}

func TestClockFindsWhenAConnectionWasGivenUp(t *testing.T) {
	t.Parallel()
	var k check.Clock
	for i, state := range []string{"reconnecting", "ready", "reconnecting", "ready"} {
		k.Add(ledger.Entry{Kind: ledger.Status, Node: client, Name: state, At: at(time.Duration(i) * time.Second)})
	}
	if d, ok := k.LeftReady(client, at(500*time.Millisecond)); !ok || d != 1500*time.Millisecond {
		t.Errorf("got %v, %v, want 1.5s", d, ok)
	}
	if d, ok := k.LeftReady(client, at(2500*time.Millisecond)); ok {
		t.Errorf("got %v, want nothing", d)
	}
	if d, ok := k.LeftReady("another", at(0)); ok {
		t.Errorf("got %v of another process, want nothing", d)
	}
}

func TestClockTellsHowAClientGotOverALoss(t *testing.T) {
	t.Parallel()
	var k check.Clock
	start := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	at := func(seconds float64) time.Time { return start.Add(time.Duration(seconds * float64(time.Second))) }
	call := func(node, id string, made, ended float64, code string) {
		k.Add(ledger.Entry{Kind: ledger.Start, Node: node, ID: id, At: at(made)})
		k.Add(ledger.Entry{Kind: ledger.End, Node: node, ID: id, At: at(ended), Code: code})
	}
	call("a", "a1", 0, 1, ledger.OK)
	call("a", "a2", 2, 3.5, "unavailable")
	call("a", "a3", 1, 4, ledger.OK) // made before the loss
	call("a", "a4", 3, 4.5, ledger.OK)
	call("a", "a5", 8, 9, ledger.OK)
	call("b", "b1", 0, 1, ledger.OK)

	if gap, ok := k.LongestGap("a", at(2), at(3)); !ok || gap != 3*time.Second {
		t.Errorf("the longest gap is %v, %v, want 3s", gap, ok)
	}
	if gap, ok := k.LongestGap("b", at(2), at(3)); ok {
		t.Errorf("a client without another answer has a gap of %v", gap)
	}
	if first, ok := k.FirstResponse("a", at(2)); !ok || first != 2500*time.Millisecond {
		t.Errorf("the first response came after %v, %v, want 2.5s", first, ok)
	}
	if first, ok := k.FirstResponse("b", at(2)); ok {
		t.Errorf("a client that made no call has a first response after %v", first)
	}
}
