package experiment

import (
	"encoding/json"
	"math"
	"runtime"
	"strings"
	"testing"

	"github.com/google/pprof/profile"

	"rabbitmq-rpc/bench/contender"
	"rabbitmq-rpc/bench/model"
	"rabbitmq-rpc/bench/process"
)

func growthOptions() Options {
	return Options{Contenders: []string{"loop", contender.Single, contender.Batched}, Callers: []int{1}, Rounds: 1, Duration: 1, MaxCalls: 1}
}

func TestGrowthSetups(t *testing.T) {
	t.Parallel()
	turns, clients := make(map[int]int), 0
	for _, e := range New(Growth, growthOptions()).setups {
		if e.Contender != contender.Single && e.Contender != contender.Batched {
			t.Errorf("%s takes part", e.Label)
		}
		if clientsOf(e) < queuesOf(e) {
			t.Errorf("%s: %d clients for %d queues", e.Label, clientsOf(e), queuesOf(e))
		}
		if e.Env.Clients > 0 {
			clients++
		}
		for _, n := range []int{1, 16, 64, 256, heavyCallers} {
			if takesPart(e, n) {
				turns[n]++
			}
		}
	}
	procs := 1 // GOMAXPROCS 1, and 2 unless these are all
	if runtime.NumCPU() > 2 {
		procs = 2
	}
	if clients != len(growthClients()) || turns[1] != 2*(1+procs) || turns[16] != 2 || turns[64] != 2*(3+procs) || turns[heavyCallers] != turns[64] {
		t.Errorf("%d numbers of clients, turns by callers %v", clients, turns)
	}
}

// growthSection returns a section whose figures double from one round to the next.
func growthSection() *Section {
	o := growthOptions()
	s := NewSection(New(Growth, o), o)
	for _, scale := range []float64{1, 2} {
		for _, e := range s.setups {
			for _, l := range s.loads {
				if !takesPart(e, l.turn.Callers) && (e.Env.Clients == 0 || l.turn.Callers != heavyCallers) {
					continue
				}
				sample := Sample{
					Rate: 1000 * scale * float64(queuesOf(e)), Processors: 2, Messages: 2, BrokerCPU: 3,
					Client: Cost{CPU: 100 / float64(l.turn.Callers)}, Server: Cost{CPU: 2},
				}
				if e.Contender == contender.Batched {
					sample.Messages = 0.02
				}
				s.Add(e.Label, l.label, sample)
			}
			if n := float64(e.Env.Clients); n > 0 {
				s.Add(e.Label, labelIdle, Sample{
					Memory: Memory{Client: 10 + 0.1*n, Broker: 150},
					Broker: process.BrokerFigures{Connections: 2 + 2*n, Channels: 3 + 3*n, Declared: 4 + n, Memory: 1e6 + 2e5*n},
				})
				s.Add(e.Label, labelSmall, Sample{P50: 0.5, Memory: Memory{Client: 12}, Client: Cost{CPU: 30}, Server: Cost{CPU: 20}, BrokerCPU: 10})
			}
		}
	}
	return s
}

func TestGrowthTables(t *testing.T) {
	t.Parallel()
	got := growthSection().Markdown()
	for _, want := range []string{
		"| amqpx | 4 | 6000 (4000–8000) | 4.00 (4.00–4.00) | 1 | 6000 (4000–8000) | 4.00 (4.00–4.00) | 1 |\n",
		"| amqpx-batch | 2 | 3000 (2000–4000) | 2.00 (2.00–2.00) | 100 | ",
		"| amqpx | 1 | 1500 (1000–2000) | 1.00 (1.00–1.00) | 100 + 2 + 3 | 1500 (1000–2000) | 1.00 (1.00–1.00) | 1.6 + 2.0 + 3.0 | ",
		"| 1 | 4, 6, 5 | 10 | – | 1.2 | – | 150 | 0.50 | 30 + 20 + 10 | 12 | 1500 (1000–2000) | 100 |\n",
		"| 200 | 402, 603, 204 | 30 | 100 | 41.0 | 200 | 150 | 0.50 | 30 + 20 + 10 | 12 | 1500 (1000–2000) | 100 |\n",
		"The broker's processes were not traced",
		"<!-- begin: growth, model; written by bench -->\n",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in:\n%s", want, got)
		}
	}
}

func TestGrowthDocuments(t *testing.T) {
	t.Parallel()
	s := growthSection()
	s.parts = []model.Part{{Side: model.Broker, Name: "process of a queue", Micros: 10}}
	if got := s.Markdown(); strings.Contains(got, "were not traced") {
		t.Error("a trace of the broker is said to be missing")
	}
	blocks, text, err := s.Documents()
	if err != nil || len(blocks) != 2 {
		t.Fatalf("%d blocks, %v", len(blocks), err)
	}
	var g model.Growth
	if err := json.Unmarshal(text, &g); err != nil {
		t.Fatal(err)
	}
	want := model.Point{
		Label: "amqpx-batch, 10 clients, 1024 callers", Batch: true, Callers: heavyCallers, Queues: 1, Clients: 10, Procs: runtime.NumCPU(),
		Processors: 2, Size: 100, Rate: 1500, Client: 100. / heavyCallers, Server: 2, Broker: 3,
	}
	found := false
	for _, p := range g.Points {
		found = found || p == want
	}
	if !found || len(g.Parts) != 1 {
		t.Errorf("no %+v in %s", want, text)
	}
	other := NewSection(New(Table, growthOptions()), growthOptions())
	if blocks, text, err := other.Documents(); blocks != nil || text != nil || err != nil || other.File() != "" {
		t.Error("another experiment has documents")
	}
}

func TestTakesPart(t *testing.T) {
	t.Parallel()
	o := growthOptions()
	o.Contenders = append(o.Contenders, contender.Batched+"@old", contender.Pair+"@dir")
	growth, all := NewSection(New(Growth, o), o), NewSection(New(Table, o), o)
	for label, want := range map[string]bool{"loop": false, contender.Batched: true, contender.Batched + "@old": true, contender.Batched + "@new": false, contender.Pair + "@dir": false} {
		if got := growth.TakesPart(label); got != want {
			t.Errorf("%s: %v, want %v", label, got, want)
		}
	}
	for _, label := range o.Contenders {
		if !all.TakesPart(label) {
			t.Errorf("%s takes no part in the table", label)
		}
	}
}

func TestPartsOfProfile(t *testing.T) {
	t.Parallel()
	stack := func(value int64, names ...string) *profile.Sample {
		sample := &profile.Sample{Value: []int64{1, value}}
		for _, name := range names {
			sample.Location = append(sample.Location, &profile.Location{Line: []profile.Line{{Function: &profile.Function{Name: name}}}})
		}
		return sample
	}
	p := &profile.Profile{Sample: []*profile.Sample{
		stack(30, "sync.(*Mutex).Lock", "rabbitmq-rpc/pkg/amqpx.(*pending).add", "main.caller"),
		stack(20, "runtime.mapaccess", "rabbitmq-rpc/pkg/amqpx.(*pending).matchAll", "rabbitmq-rpc/pkg/amqpx.(*responseReader).read"),
		stack(10, "rabbitmq-rpc/pkg/amqpx.(*match).notify", "rabbitmq-rpc/pkg/amqpx.(*pending).matchAll", "rabbitmq-rpc/pkg/amqpx.(*responseReader).read"),
		stack(40, "runtime.gcBgMarkWorker"),
	}}
	got := make(map[string]float64)
	for _, part := range partsOf(p, model.Client, 5) {
		got[part.Name] = part.Micros
	}
	for name, want := range map[string]float64{"lock of the pending table": 2.5, "goroutine that reads responses": 1.5, "goroutine that writes requests": 0} {
		if math.Abs(got[name]-want) > 1e-9 {
			t.Errorf("%s: %v µs, want %v", name, got[name], want)
		}
	}
	if len(partsOf(&profile.Profile{}, model.Server, 5)) != 0 {
		t.Error("an empty profile has parts")
	}
}

func TestPartsOfTrace(t *testing.T) {
	t.Parallel()
	const trace = "[{rabbit_amqqueue_process,900,20000},\n {rabbit_amqqueue_process,10,1000},{rabbit_channel,7,30000},{port,9,29000},{rabbit_reader,3,5000},{rabbit_writer,4,15000}]\n"
	parts, err := partsOfTrace(trace, 50)
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []float64{10, 15, 2.5, 7.5} {
		if got := parts[i]; math.Abs(got.Micros-want) > 1e-9 || got.Side != model.Broker {
			t.Errorf("%+v, want %v µs", got, want)
		}
	}
	for _, text := range []string{"", "Error: no such node", "[{rabbit_channel,7,30000}]"} {
		if _, err := partsOfTrace(text, 50); err == nil {
			t.Errorf("%q: no error", text)
		}
	}
}

// What other programs use does not count as the machine's.
func TestProcessors(t *testing.T) {
	t.Parallel()
	after := process.Consumption{
		Client: process.Usage{CPU: 30}, Server: process.Usage{CPU: 20}, Broker: 10,
		Machine: process.MachineTime{Busy: 80, Idle: 20},
	}
	want := 0.8 * float64(runtime.NumCPU())
	if got := processors(process.Consumption{}, after); math.Abs(got-want) > 1e-9 {
		t.Errorf("%v processors, want %v", got, want)
	}
	if got := processors(after, after); got != 0 {
		t.Errorf("%v processors where no time has passed", got)
	}
}
