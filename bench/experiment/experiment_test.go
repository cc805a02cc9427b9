package experiment

import (
	"slices"
	"testing"

	"rabbitmq-rpc/bench/contender"
)

func TestSetupsOfExperiments(t *testing.T) {
	t.Parallel()
	o := Options{Contenders: []string{"loop", "amqpx-batch", "python"}, Callers: []int{1}, Rounds: 1, Duration: 1, MaxCalls: 1}
	for name, want := range map[string][]string{
		Table:   {"loop", "amqpx-batch", "python"},
		Rate:    {"loop", "amqpx-batch"},
		Servers: {"loop × 1", "loop × 2", "loop × 4", "amqpx-batch × 1", "amqpx-batch × 2", "amqpx-batch × 4"},
	} {
		var got []string
		for _, e := range New(name, o).setups {
			got = append(got, e.Label)
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s: setups %v, want %v", name, got, want)
		}
	}
}

func TestSetupOfAnotherBuild(t *testing.T) {
	t.Parallel()
	o := Options{Contenders: []string{"loop", "amqpx-batch@old"}, Callers: []int{1}}
	e := New(Table, o)
	if got := e.setups[1]; got.Contender != contender.Batched || got.Program != "old" || got.Label != "amqpx-batch@old" {
		t.Errorf("second setup %+v", got)
	}
}
