package experiment

import (
	"strings"
	"testing"

	"rabbitmq-rpc/bench/contender"
)

func TestShardsSetups(t *testing.T) {
	t.Parallel()
	o := Options{Contenders: []string{"loop", contender.Single, contender.Batched}, Rounds: 1, Duration: 1, MaxCalls: 1}
	if n := len(New(Shards, o).setups); n != 8 {
		t.Errorf("%d setups without the broker's control program, want 8", n)
	}
	o.Control = []string{"ctl"}
	s := NewSection(New(Shards, o), o)
	slow := 0
	for _, e := range s.setups {
		if isSlow(e) {
			slow++
		}
		for _, l := range s.loads {
			s.Add(e.Label, l.label, Sample{Rate: 100 * float64(e.Env.Shards)})
		}
	}
	if len(s.setups) != 12 || slow != 4 {
		t.Errorf("%d setups, %d with slow queues; want 12 and 4", len(s.setups), slow)
	}
	if text := s.Markdown(); !strings.Contains(text, "| "+contender.Single+", K = 4"+labelSlowQueue+" | 400 (400–400) | 4.00 (4.00–4.00) |") {
		t.Errorf("no row of four shards with slow queues: %s", text)
	}
}

func TestSlowQueuesAreNamedForTheBroker(t *testing.T) {
	t.Parallel()
	r := &Runner{}
	setup := New(Shards, Options{Contenders: []string{contender.Single}}).setups[1]
	if name := r.slowQueueOf(setup); !strings.HasPrefix(name, "bench.slow.") || len(r.queues) != setup.Env.Shards {
		t.Errorf("queue %s, queues to delete %v", name, r.queues)
	}
}
