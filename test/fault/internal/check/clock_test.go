package check_test

import (
	"testing"
	"time"

	"rabbitmq-rpc/test/fault/internal/check"
	"rabbitmq-rpc/test/fault/internal/ledger"
)

func TestClockFindsTheFirstAnswerAfter(t *testing.T) {
	t.Parallel()
	var k check.Clock
	for _, d := range []time.Duration{5, 3, 1, 2} { // files are read one after the other
		k.Add(with(ended("x"), func(e *ledger.Entry) { e.At = at(d * time.Second) }))
	}
	k.Add(with(failed("y", "internal", "ran"), func(e *ledger.Entry) { e.At = at(4 * time.Second) }))
	if d, ok := k.AnsweredAfter(at(3500 * time.Millisecond)); !ok || d != 1500*time.Millisecond {
		t.Errorf("got %v, %v, want 1.5s", d, ok)
	}
	if d, ok := k.AnsweredAfter(at(6 * time.Second)); ok {
		t.Errorf("got %v, want nothing", d)
	}
}

func TestClockFindsWhenALinkWasGivenUp(t *testing.T) {
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
