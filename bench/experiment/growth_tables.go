package experiment

import (
	"encoding/json"
	"fmt"
	"strings"

	"rabbitmq-rpc/bench/contender"
	"rabbitmq-rpc/bench/document"
	"rabbitmq-rpc/bench/model"
	"rabbitmq-rpc/bench/process"
)

// growth renders the measured tables of the experiment Growth, and the model's in a block of their
// own.
func (s *Section) growth() string {
	all, _ := s.modelTables()
	return s.growthMeasured() + s.traceNote() + "\n" + document.Block(ModelBlock, all)
}

// traceNote says why there are no serial parts of the broker, if there are none.
func (s *Section) traceNote() string {
	for _, p := range s.parts {
		if p.Side == model.Broker {
			return ""
		}
	}
	return "\nThe broker's processes were not traced: its name is unknown, it is on another machine, or the trace failed.\n"
}

// Blocks of documents that this program writes.
const (
	MeasuredBlock = "growth, measured"
	ModelBlock    = "growth, model"
)

// Documents returns what the experiment writes beside results.md: the blocks of performance.md by
// name, and the measurement that the model was fitted to.
func (s *Section) Documents() (blocks map[string]string, measurement []byte, err error) {
	if s.Name != Growth {
		return nil, nil, nil
	}
	_, summary := s.modelTables()
	measurement, err = json.MarshalIndent(s.Growth(), "", "\t")
	return map[string]string{MeasuredBlock: s.growthMeasured(), ModelBlock: summary}, append(measurement, '\n'), err
}

// File returns the name of the experiment's own file in the report, without extension; empty for
// an experiment of results.md.
func (s *Section) File() string { return s.file }

// modelTables returns the tables of the model, or the reason why there are none.
func (s *Section) modelTables() (all, summary string) {
	all, summary, err := s.Growth().Markdown()
	if err != nil {
		return "\n" + err.Error() + "\n", "\n" + err.Error() + "\n"
	}
	return all, summary
}

// growthMeasured renders the tables of queues, GOMAXPROCS and clients.
func (s *Section) growthMeasured() string {
	return "\n#### Request queues\n" + s.queueTable() + "\n#### GOMAXPROCS\n" + s.procsTable() + "\n#### Clients in one process\n" + s.clientTable()
}

// against formats a figure of a load, and its ratio to the base's within a round.
func (s *Section) against(e, base process.Setup, load string) []string {
	return []string{
		s.spread(e.Label, load, rate).format("%.0f"),
		s.ratio(cell{e.Label, load}, cell{base.Label, load}, rate).format("%.2f"),
	}
}

// base returns the setup with one queue, one client and all processors of the same contender.
func (s *Section) base(e process.Setup) process.Setup {
	for _, b := range s.setups {
		if program, other := b.Program, e.Program; b.Contender == e.Contender && program == other && isBase(b) {
			return b
		}
	}
	return e
}

// isBase reports whether a setup has one queue, one client and all processors.
func isBase(e process.Setup) bool { return e.Env.Clients == 0 && e.Env.Queues == 0 && e.Procs == 0 }

func (s *Section) queueTable() string {
	var b strings.Builder
	some, many := labelCallers(64), labelCallers(heavyCallers)
	var rows [][]string
	for _, e := range s.setups {
		if e.Env.Clients > 0 || e.Procs > 0 {
			continue
		}
		base := s.base(e)
		cells := append([]string{base.Label, fmt.Sprint(queuesOf(e))}, s.against(e, base, some)...)
		cells = append(cells, s.callsInMessage(e.Label, some))
		rows = append(rows, append(append(cells, s.against(e, base, many)...), s.callsInMessage(e.Label, many)))
	}
	table(&b, []string{"contender", "queues", "64 callers: calls/s", "× 1 queue", "calls in a message", "1,024 callers: calls/s", "× 1 queue", "calls in a message"}, rows)
	return b.String()
}

func (s *Section) procsTable() string {
	var b strings.Builder
	var rows [][]string
	for _, e := range s.setups {
		if e.Env.Clients > 0 || e.Env.Queues > 0 {
			continue
		}
		base := s.base(e)
		cells := []string{base.Label, fmt.Sprint(procsOf(e))}
		for _, n := range []int{1, 64, heavyCallers} {
			cells = append(append(cells, s.against(e, base, labelCallers(n))...), s.costs(e.Label, labelCallers(n)))
		}
		rows = append(rows, cells)
	}
	table(&b, []string{
		"contender", "GOMAXPROCS", "1 caller: calls/s", "× all", "CPU µs/call", "64 callers: calls/s", "× all", "CPU µs/call", "1,024 callers: calls/s", "× all", "CPU µs/call",
	}, rows)
	return b.String()
}

func (s *Section) clientTable() string {
	var b strings.Builder
	many := labelCallers(heavyCallers)
	var rows [][]string
	one := ""
	for _, e := range s.setups {
		if e.Env.Clients == 0 {
			continue
		}
		if e.Env.Clients == 1 {
			one = e.Label
		}
		idle := func(figure func(Sample) float64) float64 { return s.spread(e.Label, labelIdle, figure).Median }
		first := func(figure func(Sample) float64) float64 { return s.spread(one, labelIdle, figure).Median }
		broker := func(s Sample) float64 { return s.Broker.Memory / 1e6 }
		more := func(figure func(Sample) float64) string {
			if e.Env.Clients == 1 || one == "" {
				return "–"
			}
			return fmt.Sprintf("%.0f", 1e3*(idle(figure)-first(figure))/float64(e.Env.Clients-1))
		}
		rows = append(rows, []string{
			fmt.Sprint(e.Env.Clients),
			fmt.Sprintf("%.0f, %.0f, %.0f", idle(func(s Sample) float64 { return s.Broker.Connections }), idle(func(s Sample) float64 { return s.Broker.Channels }), idle(func(s Sample) float64 { return s.Broker.Declared })),
			fmt.Sprintf("%.0f", idle(clientMemory)), more(clientMemory), fmt.Sprintf("%.1f", idle(broker)), more(broker), fmt.Sprintf("%.0f", idle(func(s Sample) float64 { return s.Memory.Broker })),
			medians("%.2f", s.spread(e.Label, labelSmall, p50)), s.costs(e.Label, labelSmall), fmt.Sprintf("%.0f", s.spread(e.Label, labelSmall, clientMemory).Median),
			s.spread(e.Label, many, rate).format("%.0f"), s.callsInMessage(e.Label, many),
		})
	}
	table(&b, []string{
		"clients", "connections, channels, queues", "client MB, idle", "kB for each client more", "broker MB, processes and tables", "kB for each client more", "broker MB, resident",
		labelSmall + ": p50 ms", "CPU µs/call", "client MB", "1,024 callers: calls/s", "calls in a message",
	}, rows)
	return b.String()
}

// callsInMessage formats how many calls share a message, on average over requests and responses.
func (s *Section) callsInMessage(setup, load string) string {
	messages := s.spread(setup, load, func(s Sample) float64 { return s.Messages }).Median
	if !(messages > 0) {
		return "–"
	}
	return fmt.Sprintf("%.3g", 2/messages)
}

// costs formats the processor times of a load.
func (s *Section) costs(setup, load string) string {
	of := func(figure func(Sample) float64) Spread { return s.spread(setup, load, figure) }
	times := []Spread{of(func(s Sample) float64 { return s.Client.CPU }), of(func(s Sample) float64 { return s.Server.CPU }), of(func(s Sample) float64 { return s.BrokerCPU })}
	verb := "%.0f"
	if times[0].Median+times[1].Median+times[2].Median < 30 {
		verb = "%.1f"
	}
	return medians(verb, times...)
}

// Growth returns the medians for the model.
func (s *Section) Growth() model.Growth {
	g := model.Growth{Parts: s.parts}
	for _, e := range s.setups {
		if strings.Contains(e.Label, "@") {
			continue // another build: the model has one
		}
		for _, l := range s.loads {
			if len(s.samples[cell{e.Label, l.label}]) == 0 {
				continue
			}
			of := func(figure func(Sample) float64) float64 { return s.spread(e.Label, l.label, figure).Median }
			p := model.Point{
				Label: e.Label + ", " + l.label, Batch: e.Contender == contender.Batched, Callers: l.turn.Callers,
				Queues: queuesOf(e), Clients: clientsOf(e), Procs: procsOf(e),
				Processors: of(func(s Sample) float64 { return s.Processors }), Size: 1, Rate: of(rate),
				Client: of(func(s Sample) float64 { return s.Client.CPU }),
				Server: of(func(s Sample) float64 { return s.Server.CPU }),
				Broker: of(func(s Sample) float64 { return s.BrokerCPU }),
			}
			if messages := of(func(s Sample) float64 { return s.Messages }); messages > 0 {
				p.Size = max(2/messages, 1)
			}
			g.Points = append(g.Points, p)
		}
	}
	return g
}
