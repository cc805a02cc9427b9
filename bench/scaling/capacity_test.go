package scaling

import (
	"math"
	"strings"
	"testing"
)

// A shard beyond the first is two queues, each with a channel of every server, and the memory that
// was measured.
func TestShardsHold(t *testing.T) {
	t.Parallel()
	var m Measurement
	add := func(part string, clients, servers, shards int, h Holdings) {
		l := base(true, 0)
		l.Part, l.Clients, l.Servers, l.Shards = part, clients, servers, shards
		m.AddIdle(l, h)
	}
	add(PartClients, 1, 1, 1, Holdings{Connections: 4, Channels: 10, Queues: 6, Memory: 1})
	add(PartClients, 11, 1, 1, Holdings{Connections: 24, Channels: 50, Queues: 16, Memory: 6})
	add(PartServers, 1, 1, 1, Holdings{Connections: 4, Channels: 10, Queues: 6, Memory: 1})
	add(PartServers, 1, 3, 1, Holdings{Connections: 8, Channels: 20, Queues: 8, Memory: 2})
	without, err := NewCapacity(m, params())
	if err != nil {
		t.Fatal(err)
	}
	if got := without.Holds(3, 3, 8); got.Connections != 12 || got.Channels != 28+2*3*7 || got.Queues != 10+2*7 || got.Memory != 3 {
		t.Errorf("eight shards, whose memory was not measured: %+v", got)
	}
	if text := without.String(); !strings.Contains(text, "·(servers − 1) + 2·servers·(shards − 1)\n") || !strings.Contains(text, "·(servers − 1) MB\n") {
		t.Errorf("formula without the memory of shards: %s", text)
	}
	add(PartShards, 3, 3, 1, Holdings{Memory: 3})
	add(PartShards, 3, 3, 8, Holdings{Memory: 6.5})
	with, err := NewCapacity(m, params())
	if err != nil {
		t.Fatal(err)
	}
	if got := with.Holds(3, 3, 8).Memory; math.Abs(got-6.5) > 1e-9 {
		t.Errorf("eight shards hold %v MB, want 6.5", got)
	}
	if text := with.String(); !strings.Contains(text, " + 0.5·(shards − 1) MB\n") {
		t.Errorf("formula with the memory of shards: %s", text)
	}
}

// The messages of a spread request queue pass between nodes as often as chance puts their ends on
// different nodes.
func TestCrossings(t *testing.T) {
	t.Parallel()
	remote, queues := base(false, 64), base(false, 64)
	remote.Nodes, remote.Place = 3, Remote
	queues.Nodes, queues.Place, queues.Queues = 3, Spread, 3
	for _, tt := range []struct {
		load Load
		want float64
	}{{base(false, 64), 0}, {remote, 4}, {queues, 0}, {shardsLoad(8, 64), 4 * 2. / 3}} {
		if got := tt.load.crossings(); math.Abs(got-tt.want) > 1e-9 {
			t.Errorf("%s: %v messages of a call between nodes, want %v", tt.load, got, tt.want)
		}
	}
}
