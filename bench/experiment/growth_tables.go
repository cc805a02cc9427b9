package experiment

import (
	"encoding/json"

	"rabbitmq-rpc/bench/contender"
	"rabbitmq-rpc/bench/model"
)

func (s *Section) growth() string {
	text, _ := json.MarshalIndent(s.measured(), "", "  ")
	return string(text)
}

type Measured struct {
	Points []model.Point
	Parts  []model.Part
}

func (s *Section) measured() (m Measured) {
	m.Parts = s.parts
	for _, e := range s.setups {
		for _, l := range s.loads {
			of := func(figure func(Sample) float64) float64 { return s.spread(e.Label, l.label, figure).Median }
			if len(s.samples[cell{e.Label, l.label}]) == 0 {
				continue
			}
			p := model.Point{
				Label: e.Label + ", " + l.label, Batch: e.Contender == contender.Batched, Callers: l.turn.Callers, Queues: queuesOf(e), Clients: clientsOf(e), Procs: procsOf(e),
				Rate: of(rate), Size: 1, Processors: of(func(s Sample) float64 { return s.Processors }), Client: of(func(s Sample) float64 { return s.Client.CPU }), Server: of(func(s Sample) float64 { return s.Server.CPU }), Broker: of(func(s Sample) float64 { return s.BrokerCPU }),
			}
			if messages := of(func(s Sample) float64 { return s.Messages }); messages > 0 {
				p.Size = 2 / messages
			}
			m.Points = append(m.Points, p)
		}
	}
	return m
}
