package scaling

import (
	"fmt"
	"slices"
	"strings"

	"rabbitmq-rpc/bench/model"
)

// Table renders the medians of all points.
func (m Measurement) Table() string {
	var b strings.Builder
	b.WriteString("\n")
	rows := [][]string{{"load", "calls/s", "p50 ms", "calls in a message", "CPU µs/call client + server + broker"}}
	for _, p := range m.Points {
		if r := p.Medians(); len(p.Runs) > 0 {
			rows = append(rows, []string{p.Load.String(), grouped(r.Rate), fmt.Sprintf("%.2f", r.P50), fmt.Sprintf("%.1f", r.Size), costs(r)})
		}
	}
	writeTable(&b, rows)
	return b.String()
}

// Blocks of docs/scaling.md.
const (
	BlockNodes      = "scaling, nodes"
	BlockServers    = "scaling, servers"
	BlockClients    = "scaling, clients"
	BlockShards     = "scaling, shards"
	BlockFormula    = "scaling, formula"
	BlockSimulation = "scaling, simulation"
	BlockPlan       = "scaling, plan"
)

// predicted has a measured point with its prediction.
type predicted struct {
	*Point
	sim Simulated
}

// Document has what docs/scaling.md shows.
type Document struct {
	Capacity Capacity
	measured Measurement
	points   []predicted
	// paces has, by part, how much longer calls took than the simulation says at the part's point
	// of reference, because the machine of the measurement is not always as fast.
	paces map[string]float64
}

// NewDocument fits the simulation and the formula to a measurement, and predicts all its points.
func NewDocument(m Measurement, parts []model.Part) (Document, error) {
	p, err := Fit(m, parts)
	if err != nil {
		return Document{}, err
	}
	c, err := NewCapacity(m, p)
	d := Document{Capacity: c, measured: m, paces: make(map[string]float64)}
	for _, at := range m.Points {
		if len(at.Runs) > 0 {
			d.points = append(d.points, predicted{at, p.Predict(at)})
		}
	}
	d.setPaces()
	return d, err
}

// setPaces finds the pace of the machine in each part, and applies it to the predictions.
func (d Document) setPaces() {
	for _, at := range d.points {
		if slices.Contains(References(), at.Load) {
			d.paces[at.Part] = sum(at.Medians()) / sum(at.sim.run())
		}
	}
	for i, at := range d.points {
		d.points[i].sim = at.sim.slower(d.pace(at.Point))
	}
}

// References returns the points from which the pace of the machine in a part is taken: with 1,024
// callers, of the least setup of each part that the parameters are not taken from.
func References() []Load {
	servers, clients, shards := base(false, 1024), base(true, 1024), base(false, 1024)
	servers.Part, clients.Part, shards.Part = PartServers, PartClients, PartShards
	shards.Servers, shards.Clients = 3, 3
	return []Load{servers, clients, shards}
}

// pace returns the pace of the machine in the part of a point.
func (d Document) pace(p *Point) float64 {
	if pace := d.paces[p.Part]; pace > 0 {
		return pace
	}
	return 1
}

// slower returns what a simulation came to with the processor times of a slower machine.
func (s Simulated) slower(pace float64) Simulated {
	s.Client, s.Server, s.Broker = s.Client*pace, s.Server*pace, s.Broker*pace
	return s
}

// Blocks returns the blocks that show the measurement and how the formula and the simulation meet
// it.
func (d Document) Blocks() map[string]string {
	return map[string]string{
		BlockNodes: d.nodes(), BlockServers: d.servers(), BlockClients: d.clients(), BlockShards: d.shards(),
		BlockFormula: d.formula(), BlockSimulation: d.simulation(),
	}
}

// pointTable renders the points of a part.
func (d Document) pointTable(part string) string {
	var b strings.Builder
	b.WriteString("\n")
	rows := [][]string{{"load", "calls in a message", "CPU µs/call client + server + broker", "calls/s for each busy processor", "simulated: calls in a message", "CPU µs/call", "error of the sum"}}
	for _, p := range d.points {
		if p.Part != part {
			continue
		}
		r := p.Medians()
		rows = append(rows, []string{
			p.Load.String(), fmt.Sprintf("%.1f", r.Size), costs(r), grouped(1e6 / sum(r)),
			fmt.Sprintf("%.1f", p.sim.Size), costs(p.sim.run()), d.off(p),
		})
	}
	writeTable(&b, rows)
	return b.String()
}

// off formats the error of the simulated processor time, and whether the point was fitted.
func (d Document) off(p predicted) string {
	text := fmt.Sprintf("%+.0f %%", 100*Error(sum(p.sim.run()), sum(p.Medians())))
	switch {
	case slices.Contains(Fitted(), p.Load):
		text += ", fitted"
	case slices.Contains(References(), p.Load):
		text += ", reference"
	}
	return text
}

func sum(r Run) float64 { return r.Client + r.Server + r.Broker }

// run returns the figures that a round of a measurement has as well.
func (s Simulated) run() Run {
	return Run{Rate: s.Rate, P50: s.P50, P99: s.P99, Client: s.Client, Server: s.Server, Broker: s.Broker, Size: s.Size}
}

func (d Document) nodes() string {
	idle := d.measured.Part(PartNodes, true)
	if len(idle) == 0 {
		return d.pointTable(PartNodes)
	}
	var b strings.Builder
	rows := [][]string{{"one client and one server", "connections, channels, queues, files", "broker MB, processes and tables", "formula"}}
	for _, p := range idle {
		rows = append(rows, d.holdings(p.layout(), p)[:4])
	}
	b.WriteString(d.pointTable(PartNodes) + "\n")
	writeTable(&b, rows)
	return b.String()
}

// layout names the nodes of a load, and the kind of its request queue.
func (l Load) layout() string {
	text := count(l.Nodes, "node") + ", " + l.Place
	if l.Quorum {
		text += ", quorum"
	}
	return text
}

func (d Document) servers() string {
	var b strings.Builder
	rows := [][]string{{"servers", "connections, channels, queues, files", "broker MB, processes and tables", "formula"}}
	for _, p := range d.measured.Part(PartServers, true) {
		rows = append(rows, d.holdings(fmt.Sprint(p.Servers), p)[:4])
	}
	b.WriteString(d.pointTable(PartServers) + "\n")
	writeTable(&b, rows)
	return b.String()
}

// shards renders the section of the shards. It is empty if they were not measured.
func (d Document) shards() string {
	points, idle := d.measured.Part(PartShards, false), d.measured.Part(PartShards, true)
	if len(points) == 0 && len(idle) == 0 {
		return ""
	}
	var b strings.Builder
	b.WriteString(shardsText)
	if len(points) > 0 {
		b.WriteString(d.pointTable(PartShards))
	}
	if len(idle) == 0 {
		return b.String()
	}
	rows := [][]string{{"shards", "connections, channels, queues, files", "broker MB, processes and tables", "formula"}}
	for _, p := range idle {
		rows = append(rows, d.holdings(fmt.Sprintf("%d, %s", p.Shards, p.layout()), p)[:4])
	}
	b.WriteString("\n")
	writeTable(&b, rows)
	return b.String()
}

// shardsText explains the tables of the shards.
const shardsText = `
## Shards

One request queue of 1 to 8 shards ([performance/shards.md](performance/shards.md)), with three servers and three clients: all on
one node, or "spread", with the shards, the servers and the clients on three nodes in turn. Each message of a spread queue passes
between two nodes in two of three cases. The command adds rounds to ` + "`scaling.json`" + `:

` + "```" + `
deploy/with-scaling.sh 3 go run . -experiment scaling-shards -rounds 1 -limit 15m -out ../docs/performance
` + "```" + `
`

// holdings returns the cells of what a point holds, and what the formula says.
func (d Document) holdings(name string, p *Point) []string {
	of := func(figure func(Holdings) float64) float64 { return p.Holds(figure) }
	h := d.Capacity.Holds(p.Clients, p.Servers, p.Shards)
	list := func(c, ch, q, f float64) string { return fmt.Sprintf("%.0f, %.0f, %.0f, %.0f", c, ch, q, f) }
	got := list(of(func(h Holdings) float64 { return h.Connections }), of(func(h Holdings) float64 { return h.Channels }),
		of(func(h Holdings) float64 { return h.Queues }), of(func(h Holdings) float64 { return h.Files }))
	memory := func(h Holdings) float64 { return h.Memory }
	return []string{
		name, got, fmt.Sprintf("%.1f", of(memory)), list(h.Connections, h.Channels, h.Queues, h.Files) + fmt.Sprintf("; %.1f", h.Memory),
		fmt.Sprintf("%.0f", of(func(h Holdings) float64 { return h.Resident })), fmt.Sprintf("%.0f", of(func(h Holdings) float64 { return h.Client })),
	}
}

func (d Document) clients() string {
	var b strings.Builder
	rows := [][]string{{"clients", "connections, channels, queues, files", "broker MB, processes and tables", "formula", "broker MB, resident", "client process, MB"}}
	for _, p := range d.measured.Part(PartClients, true) {
		rows = append(rows, d.holdings(fmt.Sprint(p.Clients), p))
	}
	b.WriteString("\n")
	writeTable(&b, rows)
	return b.String() + d.pointTable(PartClients)
}

// Checks returns how well the simulation and the formula meet the measurement: the processor time
// of a call of all sides together, the calls in a message, and what clients and servers hold.
func (d Document) Checks() (simulated, sizes, formula, memory Check) {
	var all, closed, idle []*Point
	sims := make(map[*Point]Simulated)
	for _, p := range d.points {
		if slices.Contains(Fitted(), p.Load) || slices.Contains(References(), p.Load) {
			continue
		}
		sims[p.Point] = p.sim
		all = append(all, p.Point)
		if covered(p.Point) {
			closed = append(closed, p.Point)
		}
	}
	for _, part := range []string{PartNodes, PartServers, PartClients, PartShards} {
		idle = append(idle, d.measured.Part(part, true)...)
	}
	simulated = check(all, simulationTolerance, func(p *Point) float64 { return sum(sims[p].run()) / sum(p.Medians()) })
	sizes = check(all, sizeTolerance, func(p *Point) float64 { return sims[p].Size / p.Medians().Size })
	formula = check(closed, formulaTolerance, func(p *Point) float64 { return d.pace(p) * sum(d.Capacity.CostsOf(p)) / sum(p.Medians()) })
	memory = check(idle, memoryTolerance, func(p *Point) float64 {
		of := func(h Holdings) float64 { return h.Memory + resident }
		return (d.Capacity.Holds(p.Clients, p.Servers, p.Shards).Memory + resident) / p.Holds(of)
	})
	return simulated, sizes, formula, memory
}

// resident is about what a broker without clients has in memory, in megabytes: errors of what
// clients add count against all memory.
const resident = 100

// Tolerances within which predictions count as good.
const (
	simulationTolerance = 0.35
	sizeTolerance       = 0.5
	formulaTolerance    = 0.35
	memoryTolerance     = 0.1
)

func (d Document) formula() string {
	_, _, formula, memory := d.Checks()
	return fmt.Sprintf("%s\nProcessor time of the measured closed loops, with their measured n: %s. Memory: %s.\n\n%s", d.Capacity, formula, memory, d.Capacity.example())
}

func (d Document) simulation() string {
	simulated, sizes, _, _ := d.Checks()
	var paces []string
	for _, l := range References() {
		if pace := d.paces[l.Part]; pace > 0 {
			paces = append(paces, fmt.Sprintf("%s %.2f", l.Part, pace))
		}
	}
	return fmt.Sprintf("\nPoints to which the simulation was not fitted, processor time of a call: %s. Calls in a message: %s. "+
		"Processor time at the points of reference, measured against simulated: %s.\n", simulated, sizes, strings.Join(paces, ", "))
}

// PlanTable renders the scenarios.
func (c Capacity) PlanTable(plans []Plan) string {
	var b strings.Builder
	b.WriteString("\n")
	rows := [][]string{{
		"clients, calls/s", "nodes, servers, shards", "connections, channels, queues", "memory of the nodes, GB", "calls in a message", "processors busy: clients, servers, nodes",
		"p50, p99 ms", "busiest", "with half: calls/s", "limit",
	}}
	for _, p := range plans {
		s, r, h := p.System, p.Result, p.Holds
		cores := func(micros float64) float64 { return micros * r.Rate / 1e6 }
		memory := (h.Memory + c.Base.Resident*float64(s.Nodes)) / 1e3
		rows = append(rows, []string{
			grouped(float64(p.Clients)) + ", " + grouped(p.Rate), fmt.Sprintf("%d, %d, %d", s.Nodes, s.Servers, s.Shards),
			grouped(h.Connections) + "; " + grouped(h.Channels) + "; " + grouped(h.Queues), fmt.Sprintf("%.1f", memory), fmt.Sprintf("%.1f", r.Size),
			fmt.Sprintf("%.1f, %.1f, %.1f", cores(r.Client), cores(r.Server), cores(r.Broker)), fmt.Sprintf("%.1f, %.1f", r.P50, r.P99),
			fmt.Sprintf("%s, %.0f %%", r.Limit, 100*r.Busy), grouped(p.Less.Rate), p.Less.Limit,
		})
	}
	writeTable(&b, rows)
	return b.String()
}

// String names a load.
func (l Load) String() string {
	kind := "single"
	if l.Batch {
		kind = "batch"
	}
	text := kind + ", " + l.layout()
	if l.Shards > 1 || l.Part == PartShards {
		text += ", " + count(l.Shards, "shard")
	}
	text += fmt.Sprintf(", %s, %s", count(l.Servers, "server"), count(l.Clients, "client"))
	if l.Handler > 0 {
		text += fmt.Sprintf(", handler %.0f ms", l.Handler/1e3)
	}
	if l.Rate > 0 {
		return text + fmt.Sprintf(", %s calls/s", grouped(l.Rate))
	}
	return text + ", " + count(l.Callers, "caller")
}

func costs(r Run) string {
	if r.Client+r.Server+r.Broker < 30 {
		return fmt.Sprintf("%.1f + %.1f + %.1f", r.Client, r.Server, r.Broker)
	}
	return fmt.Sprintf("%.0f + %.0f + %.0f", r.Client, r.Server, r.Broker)
}

func count(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return grouped(float64(n)) + " " + noun + "s"
}

// grouped formats a whole number with commas between the thousands.
func grouped(x float64) string {
	digits := fmt.Sprintf("%.0f", x)
	for i := len(digits) - 3; i > 0; i -= 3 {
		digits = digits[:i] + "," + digits[i:]
	}
	return digits
}

// writeTable writes a Markdown table whose first row has the heads. The first column is
// left-aligned, the others right-aligned.
func writeTable(b *strings.Builder, rows [][]string) {
	for i, row := range rows {
		fmt.Fprintf(b, "| %s |\n", strings.Join(row, " | "))
		if i == 0 {
			fmt.Fprintf(b, "| --- |%s\n", strings.Repeat(" ---: |", len(row)-1))
		}
	}
}
