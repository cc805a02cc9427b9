package scaling

import (
	"strings"
	"testing"

	"rabbitmq-rpc/bench/document"
)

// shardsLoad is a load of the experiment scaling-shards: spread over three nodes.
func shardsLoad(shards, callers int) Load {
	l := base(true, callers)
	l.Part, l.Nodes, l.Place, l.Shards, l.Servers, l.Clients = PartShards, 3, Spread, shards, 3, 3
	return l
}

// The document says nothing about shards until they were measured, and then has their tables.
func TestShardsAreShownOnceMeasured(t *testing.T) {
	t.Parallel()
	d := Document{Capacity: Capacity{Base: Holdings{Channels: 6, Queues: 5}}}
	if got := d.Blocks()[BlockShards]; got != "" {
		t.Errorf("without a measurement: %q", got)
	}
	for _, n := range []int{1, 4} {
		l := shardsLoad(n, 64)
		d.measured.AddRun(l, Run{Client: 10, Server: 20, Broker: 30, Size: 7})
		d.measured.AddIdle(l, Holdings{Connections: 12, Channels: 40, Queues: 16, Memory: 3})
	}
	for _, p := range d.measured.Points {
		d.points = append(d.points, predicted{p, Simulated{Client: 10, Server: 20, Broker: 36, Size: 8}})
	}
	got := d.Blocks()[BlockShards]
	for _, want := range []string{
		"\n## Shards\n",
		"| batch, 3 nodes, spread, 1 shard, 3 servers, 3 clients, 64 callers | 7.0 | 10 + 20 + 30 |",
		"| batch, 3 nodes, spread, 4 shards, 3 servers, 3 clients, 64 callers | 7.0 | 10 + 20 + 30 | 16,667 | 8.0 | 10 + 20 + 36 | +10 % |",
		"\n| 4, 3 nodes, spread | 12, 40, 16, 0 | 3.0 | 0, 24, 11, 0; 0.0 |\n",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in:\n%s", want, got)
		}
	}
	page := "before\n\n" + document.Block(BlockShards, "") + "\nafter\n"
	if with, ok := document.Replace(page, BlockShards, got); !ok || !strings.Contains(with, "## Shards") {
		t.Errorf("the empty block of a page is not replaced: %s", with)
	}
}

// The section of the nodes has what one client and one server hold, where that was measured.
func TestNodesShowWhatIsHeld(t *testing.T) {
	t.Parallel()
	d := Document{Capacity: Capacity{Base: Holdings{Channels: 6, Queues: 5}}}
	if got := d.Blocks()[BlockNodes]; strings.Contains(got, "formula") {
		t.Errorf("without a measurement: %q", got)
	}
	l := base(false, 0)
	l.Part, l.Nodes, l.Place, l.Quorum = PartNodes, 3, Remote, true
	d.measured.AddIdle(l, Holdings{Connections: 4, Channels: 10, Queues: 6, Memory: 2})
	if got, want := d.Blocks()[BlockNodes], "\n| 3 nodes, remote, quorum | 4, 10, 6, 0 | 2.0 | 0, 6, 5, 0; 0.0 |\n"; !strings.Contains(got, want) {
		t.Errorf("no %q in:\n%s", want, got)
	}
}

// A part that was measured while the machine was half as fast has predictions of twice the processor
// time, at its point of reference and at all others. Parts without such a point keep theirs.
func TestPaceOfThePartsOfAMeasurement(t *testing.T) {
	t.Parallel()
	reference := References()[0]
	other := reference
	other.Callers = 64
	elsewhere := shardsLoad(2, 64)
	d := Document{paces: make(map[string]float64)}
	for _, l := range []Load{reference, other, elsewhere} {
		d.measured.AddRun(l, Run{Client: 20, Server: 40, Broker: 60})
	}
	for _, p := range d.measured.Points {
		d.points = append(d.points, predicted{p, Simulated{Client: 10, Server: 20, Broker: 30, Size: 8}})
	}
	d.setPaces()
	for i, want := range []float64{20, 20, 10} {
		if got := d.points[i].sim; got.Client != want || got.Server != 2*want || got.Broker != 3*want || got.Size != 8 {
			t.Errorf("%v: predicted %+v, want %v µs of the client", d.points[i].Load, got, want)
		}
	}
}
