package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

// crew holds the processes of one entrant.
type crew struct {
	entrant entrant
	queue   string
	broker  *side // the entrant's own broker; nil for most entrants
	servers []*side
	client  *side
}

// startCrew starts the processes of an entrant in the order broker, servers, client.
func (c *conductor) startCrew(ctx context.Context, e entrant) (_ *crew, err error) {
	k := &crew{entrant: e, queue: c.newQueue(e.contender)}
	defer func() {
		if err != nil {
			err = errors.Join(err, k.stop())
		}
	}()
	b := brief{Contender: e.contender, Env: e.env}
	b.Env.URL, b.Env.Queue = c.opts.url, k.queue
	found, err := findEntry(e.contender)
	if err != nil {
		return nil, err
	}
	start := func(r role) (*side, error) {
		b.Role = r
		if c.opts.cpuProfile != "" {
			b.CPUProfile = fmt.Sprintf("%s.%s.%s.pprof", c.opts.cpuProfile, e.contender, r)
			if r == roleServer && len(k.servers) > 0 {
				b.CPUProfile = fmt.Sprintf("%s.%s.%s-%d.pprof", c.opts.cpuProfile, e.contender, r, len(k.servers)+1)
			}
		}
		return startSide(ctx, b, programOf(found, e.program, r))
	}
	if _, ok := found.contender.(brokered); ok {
		if k.broker, err = start(roleBroker); err != nil {
			return nil, err
		}
		b.Env.Endpoint = k.broker.endpoint
	}
	for range e.servers {
		s, err := start(roleServer)
		if err != nil {
			return nil, err
		}
		k.servers = append(k.servers, s)
		if s.endpoint != "" {
			b.Env.Endpoint = s.endpoint
		}
	}
	k.client, err = start(roleClient)
	return k, err
}

// programOf returns the command line of a process: a foreign program, another build of this
// program, or nil for this program.
func programOf(e entry, build string, r role) []string {
	if f, ok := e.contender.(foreign); ok {
		return f.program(r)
	}
	if build != "" {
		return []string{build, childArg}
	}
	return nil
}

// stop ends the processes, the client first.
func (k *crew) stop() error {
	var faults []error
	for _, s := range slices.Concat([]*side{k.client}, k.servers, []*side{k.broker}) {
		if s != nil {
			faults = append(faults, s.stop())
		}
	}
	return errors.Join(faults...)
}

// consumed is the usage of a crew's processes since their start.
type consumed struct {
	client, server usage
	broker         time.Duration
}

// consumption collects the usage of all processes of the crew. The usages of the servers are
// added up, except for memory: the figure is the largest server's.
func (c *conductor) consumption(k *crew) (consumed, error) {
	var total consumed
	r, err := k.client.ask(command{})
	if err != nil {
		return total, err
	}
	total.client = r.Usage
	for _, s := range k.servers {
		r, err := s.ask(command{})
		if err != nil {
			return total, err
		}
		total.server = total.server.plus(r.Usage)
	}
	if k.broker == nil {
		total.broker, err = threadsCPU(c.opts.brokerPID)
		return total, err
	}
	r, err = k.broker.ask(command{})
	total.broker = r.Usage.CPU
	return total, err
}

// turn runs one turn with a crew and measures the usage of the crew's processes.
func (c *conductor) turn(k *crew, t turn) (Sample, error) {
	before, err := c.consumption(k)
	if err != nil {
		return Sample{}, err
	}
	r, err := k.client.ask(command{Turn: &t})
	if err != nil {
		return Sample{}, err
	}
	after, err := c.consumption(k)
	if err != nil {
		return Sample{}, err
	}
	if r.Outcome == nil || r.Outcome.Calls == 0 {
		return Sample{}, fmt.Errorf("%s: no call in %v", k.entrant.label, t.Duration)
	}
	return newSample(*r.Outcome, before, after), nil
}
