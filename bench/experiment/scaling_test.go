package experiment

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"rabbitmq-rpc/bench/contender"
	"rabbitmq-rpc/bench/process"
	"rabbitmq-rpc/bench/scaling"
)

func scalingOptions(nodes int) Options {
	o := Options{Contenders: []string{"loop", contender.Single, contender.Batched, contender.Batched + "@old"}, Rounds: 1, Duration: 1, MaxCalls: 1}
	for i := range nodes {
		o.Cluster = append(o.Cluster, Node{URL: string(rune('a' + i))})
	}
	return o
}

// The places of a cluster are measured only if there is one, and each load once.
func TestScalingSetups(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name          string
		nodes, setups int
	}{
		{ScalingNodes, 0, 2},
		{ScalingNodes, 3, 2 * 6},
		{ScalingServers, 0, 2 * 8},
		{ScalingClients, 0, 6},
		{ScalingShards, 0, 2 * 4},
		{ScalingShards, 3, 2 * 3 * 4},
	} {
		e := New(tt.name, scalingOptions(tt.nodes))
		if len(e.scaled) != tt.setups || e.IsEmpty() {
			t.Errorf("%s with %d nodes: %d setups, want %d", tt.name, tt.nodes, len(e.scaled), tt.setups)
		}
		seen := make(map[scaling.Load]bool)
		for _, s := range e.scaled {
			for _, turn := range s.turns {
				l := s.point
				l.Callers, l.Rate = turn.Callers, turn.Rate
				if seen[l] {
					t.Errorf("%s is measured twice", l)
				}
				seen[l] = true
			}
		}
	}
}

func TestScalingPlaces(t *testing.T) {
	t.Parallel()
	places := make(map[string]process.Setup)
	for _, s := range New(ScalingNodes, scalingOptions(3)).scaled {
		if want := !s.point.Batch && s.point.Queues == 1; s.idle != want {
			t.Errorf("%s: what it holds is measured: %v, want %v", s.point, s.idle, want)
		}
		if s.point.Nodes == 3 && !s.point.Batch && !s.point.Quorum {
			places[s.point.Place] = s.setup
		}
	}
	remote, spread := places[scaling.Remote], places[scaling.Spread]
	if !remote.Declared || remote.ServerURL != "b" || remote.ClientURL != "c" {
		t.Errorf("remote: %+v", remote)
	}
	if got := strings.Join(spread.Env.Nodes, ""); got != "abc" || spread.Env.Queues != 3 {
		t.Errorf("spread: %+v", spread)
	}
}

// A request queue of several shards has the same servers and clients on one node and on three.
func TestScalingShards(t *testing.T) {
	t.Parallel()
	shards := make(map[string][]int)
	for _, s := range New(ScalingShards, scalingOptions(3)).scaled {
		p, setup := s.point, s.setup
		if p.Part != scaling.PartShards || p.Queues != 1 || p.Servers != setup.Servers || p.Clients != setup.Env.Clients || p.Servers != 3 || p.Clients != 3 {
			t.Errorf("%s: setup %+v", p, setup)
		}
		if p.Shards != setup.Env.Shards || p.Quorum != setup.Env.Quorum || s.idle != p.Batch {
			t.Errorf("%s: setup %+v, what it holds is measured: %v", p, setup, s.idle)
		}
		want := ""
		if p.Place == scaling.Spread {
			want = "abc"
		}
		if got := strings.Join(setup.Env.Spread, ""); got != want {
			t.Errorf("%s: on the nodes %q, want %q", p, got, want)
		}
		of := fmt.Sprintf("batch %v, nodes %d, quorum %v", p.Batch, p.Nodes, p.Quorum)
		shards[of] = append(shards[of], p.Shards)
	}
	for of, got := range shards {
		if !slices.Equal(got, []int{1, 2, 4, 8}) {
			t.Errorf("%s: shards %v", of, got)
		}
	}
	if len(shards) != 2*3 {
		t.Errorf("%d curves, want single messages and batches on one node, and on three with classic and quorum queues: %v", len(shards), shards)
	}
}

func TestScalingTable(t *testing.T) {
	t.Parallel()
	s := NewSection(New(ScalingServers, scalingOptions(0)), scalingOptions(0))
	if _, ok := s.Measured(); !ok {
		t.Fatal("the experiment measures nothing")
	}
	s.measured.AddRun(s.scaled[0].point, scaling.Run{Rate: 1234, Client: 10, Server: 20, Broker: 30, Size: 1})
	if got, want := s.Markdown(), "| 1,234 | 0.00 | 1.0 | 10 + 20 + 30 |"; !strings.Contains(got, want) {
		t.Errorf("no %q in:\n%s", want, got)
	}
	other := NewSection(New(Table, scalingOptions(0)), scalingOptions(0))
	if _, ok := other.Measured(); ok {
		t.Error("another experiment has a measurement of scaling")
	}
}
