package experiment

import (
	"testing"
	"time"

	"rabbitmq-rpc/bench/process"
)

func TestPacing(t *testing.T) {
	t.Parallel()
	p := newMaxima()
	e := process.Setup{Label: "x"}
	fixed := load{label: "10000/s", turn: process.Turn{Rate: 10_000, Duration: time.Second}}
	half := load{label: labelHalf, share: 0.5}
	if _, ok := p.turn(e, half, 0); ok {
		t.Error("a share of an unknown maximum was taken")
	}
	if got, ok := p.turn(e, fixed, 0); !ok || got.Rate != 10_000 {
		t.Errorf("without a maximum: %v, %v, want the rate as it is", got.Rate, ok)
	}
	p.found(e, 11_000)
	if _, ok := p.turn(e, fixed, 0); ok {
		t.Error("10,000/s were asked for with a maximum of 11,000/s")
	}
	p.found(e, 101_000)
	if got, ok := p.turn(e, half, 1); !ok || got.Rate != 28_000 {
		t.Errorf("half of the median maximum: %v, %v, want 28,000/s", got.Rate, ok)
	}
	p.found(e, 11_000)
	for round := 1; round <= 2; round++ {
		if _, ok := p.turn(e, fixed, round); !ok {
			t.Errorf("round %d: sits out, although its best maximum is 101,000/s", round)
		}
	}
	slow := process.Setup{Label: "z"}
	p.found(slow, 11_000)
	_, _ = p.turn(slow, fixed, 1)
	p.found(slow, 101_000)
	if _, ok := p.turn(slow, fixed, 2); ok {
		t.Error("a load that was sat out in the first round came back")
	}
	if _, ok := p.turn(process.Setup{Label: "y"}, fixed, 1); !ok {
		t.Error("one setup's maximum counted for another")
	}
}

func TestSequentialEntrantsSitOut(t *testing.T) {
	t.Parallel()
	e := process.Setup{Label: "x", Sequential: true}
	for callers, want := range map[int]bool{1: true, 2: false, 1024: false} {
		if _, ok := newMaxima().turn(e, load{turn: process.Turn{Callers: callers}}, 0); ok != want {
			t.Errorf("%d callers: takes part: %v, want %v", callers, ok, want)
		}
	}
}
