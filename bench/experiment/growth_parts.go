package experiment

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/pprof/profile"

	"rabbitmq-rpc/bench/contender"
	"rabbitmq-rpc/bench/model"
	"rabbitmq-rpc/bench/process"
)

// Times of the part of the experiment Growth that measures serial parts.
const (
	profileTime = 4 * time.Second
	traceTime   = 7 * time.Second        // the control program of the broker takes seconds to start
	traceDelay  = 500 * time.Millisecond // before the control program is started
)

// brokerTrace is an Erlang expression that follows for a moment when each process of the broker
// runs. Its value is a list of {Kind, Runs, Microseconds}, one tuple for each process or port.
//
//go:embed growth_trace.erl
var brokerTrace string

// serialPart finds the samples of a serial part in a processor profile: the samples with a frame
// of one of some functions, and with no frame of some other functions.
type serialPart struct {
	side, name string
	onPath     bool     // every call of a batch waits for it, one after the other
	functions  []string // parts of names
	without    []string
}

// serialParts returns the serial parts of a client, or of a server: goroutines that exist once,
// and sections under a lock. A goroutine has the name of its function. The reading goroutines of
// the two connections of a side count together.
func serialParts() []serialPart {
	const reader = "amqp091-go.(*Connection).reader"
	return []serialPart{
		{side: model.Client, name: "goroutine that reads responses", onPath: true, functions: []string{"amqpx.(*responseReader).read"}},
		{side: model.Client, name: "goroutine that writes requests", onPath: true, functions: []string{"publish.(*publisher).write"}},
		{side: model.Client, name: "goroutine for confirms", functions: []string{"publish.(*publisher).confirm"}},
		{side: model.Client, name: "goroutines that read frames", functions: []string{reader}},
		{side: model.Client, name: "lock of the pending table", functions: []string{"amqpx.(*pending)."}, without: []string{"amqpx.(*match).notify"}},
		{side: model.Client, name: "lock of the outbox", functions: []string{"publish.(*Outbox)."}},
		{side: model.Server, name: "goroutine that receives requests", onPath: true, functions: []string{"amqpx.(*consumer).receive"}},
		{side: model.Server, name: "goroutine that writes responses", onPath: true, functions: []string{"publish.(*publisher).write"}},
		{side: model.Server, name: "goroutine for confirms", functions: []string{"publish.(*publisher).confirm"}},
		{side: model.Server, name: "goroutines that read frames", functions: []string{reader}},
		{side: model.Server, name: "lock of the deduplication", functions: []string{"amqpx.(*dedupCache)."}},
		{side: model.Server, name: "lock of the workers' queue", functions: []string{"xsync.(*Queue"}},
		{side: model.Server, name: "lock of the outbox", functions: []string{"publish.(*Outbox)."}},
	}
}

// growthParts measures the serial parts, with 1,024 callers: of client and server from processor
// profiles, of the broker from a trace of its processes. Without the broker's control program the
// broker has no serial parts.
func (r *Runner) growthParts(ctx context.Context, s *Section) error {
	for _, setup := range s.setups {
		if setup.Env.Clients > 0 || setup.Env.Queues > 0 || setup.Procs > 0 {
			continue
		}
		parts, err := r.profiledParts(ctx, s, setup)
		if err != nil {
			return err
		}
		traced, err := r.tracedParts(ctx, setup)
		if err != nil {
			return err
		}
		for _, p := range append(parts, traced...) {
			p.Batch = setup.Contender == contender.Batched
			s.parts = append(s.parts, p)
		}
	}
	return nil
}

// heavyTurn is a turn of 1,024 callers that is not bounded by its number of calls.
func heavyTurn(d time.Duration) process.Turn {
	return process.Turn{Callers: heavyCallers, Duration: d, MaxCalls: 1 << 30}
}

// profiledParts returns the serial parts of client and server.
func (r *Runner) profiledParts(ctx context.Context, s *Section, setup process.Setup) (_ []model.Part, err error) {
	dir, err := os.MkdirTemp("", "bench-growth-")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	options := r.Options.Options
	options.CPUProfile = filepath.Join(dir, "cpu")
	g, err := process.Start(ctx, setup, r.queueOf(setup), options)
	if err != nil {
		return nil, err
	}
	measured, err := g.Run(heavyTurn(profileTime))
	if err = errors.Join(err, g.Stop()); err != nil {
		return nil, err
	}
	sample := newSample(measured)
	r.progress(s.Name, r.Options.Rounds, "profile", setup.Label, sample)
	var parts []model.Part
	for side, cpu := range map[string]float64{model.Client: sample.Client.CPU, model.Server: sample.Server.CPU} {
		file, err := os.ReadFile(fmt.Sprintf("%s.%s.%s.pprof", options.CPUProfile, setup.Contender, side))
		if err != nil {
			return nil, err
		}
		p, err := profile.ParseData(file)
		if err != nil {
			return nil, err
		}
		parts = append(parts, partsOf(p, side, cpu)...)
	}
	slices.SortFunc(parts, func(a, b model.Part) int { return strings.Compare(a.Side, b.Side) })
	return parts, nil
}

// partsOf returns the serial parts of a side, whose processor time for a call is given in
// microseconds.
func partsOf(p *profile.Profile, side string, cpu float64) []model.Part {
	var total float64
	times := make(map[string]float64)
	for _, sample := range p.Sample {
		value := float64(sample.Value[len(sample.Value)-1])
		total += value
		for _, part := range serialParts() {
			if part.side == side && hasFrame(sample, part.functions) && !hasFrame(sample, part.without) {
				times[part.name] += value
			}
		}
	}
	var parts []model.Part
	for _, part := range serialParts() {
		if part.side == side && total > 0 {
			parts = append(parts, model.Part{Side: side, Name: part.name, OnPath: part.onPath, Micros: cpu * times[part.name] / total})
		}
	}
	return parts
}

// hasFrame reports whether a stack has a function whose name contains one of the texts.
func hasFrame(sample *profile.Sample, names []string) bool {
	for _, l := range sample.Location {
		for _, line := range l.Line {
			if line.Function != nil && slices.ContainsFunc(names, func(text string) bool { return strings.Contains(line.Function.Name, text) }) {
				return true
			}
		}
	}
	return false
}

// tracedParts returns the serial parts of the broker: the busiest process of each kind. A trace that
// fails is logged, and there are no parts.
func (r *Runner) tracedParts(ctx context.Context, setup process.Setup) ([]model.Part, error) {
	if len(r.Options.Control) == 0 || r.Options.BrokerPID == 0 {
		return nil, nil
	}
	g, err := r.start(ctx, setup)
	if err != nil {
		return nil, err
	}
	type traced struct {
		text []byte
		err  error
	}
	trace := make(chan traced, 1)
	go func() { // ends with the control program; awaited below
		if err := contender.Pause(ctx, traceDelay); err != nil {
			trace <- traced{err: err}
			return
		}
		program := append(slices.Clone(r.Options.Control), "eval", brokerTrace)
		cmd := exec.CommandContext(ctx, program[0], program[1:]...) //nolint:gosec // a script of this repository.
		cmd.Stderr = os.Stderr
		text, err := cmd.Output()
		trace <- traced{text, err}
	}()
	measured, err := g.Run(heavyTurn(traceTime))
	t := <-trace
	if err = errors.Join(err, g.Stop(), ctx.Err()); err != nil {
		return nil, err
	}
	var parts []model.Part
	if t.err == nil {
		parts, t.err = partsOfTrace(string(t.text), newSample(measured).BrokerCPU)
	}
	if t.err != nil {
		_, _ = fmt.Fprintf(r.Log, "the processes of the broker are not traced: %v\n", t.err)
	}
	return parts, nil
}

// brokerKinds names the kinds of Erlang processes that are serial parts.
func brokerKinds() []struct{ kind, side, name string } {
	return []struct{ kind, side, name string }{
		{"rabbit_amqqueue_process", model.Broker, "process of a queue"},
		{"rabbit_channel", model.Broker, "process of a channel"},
		{"rabbit_reader", model.Broker, "process that reads a connection"},
		{"rabbit_writer", model.Broker, "process that writes to a connection"},
	}
}

// tracedProcess matches a tuple of the value of brokerTrace.
var tracedProcess = regexp.MustCompile(`\{([a-z_0-9]+),(\d+),(\d+)\}`)

// partsOfTrace returns the serial parts of the broker, whose processor time for a call is given in
// microseconds. A process is stopped with its processor in the trace, so only shares of the time
// of all processes count.
func partsOfTrace(text string, cpu float64) ([]model.Part, error) {
	var total float64
	most := make(map[string]float64)
	for _, match := range tracedProcess.FindAllStringSubmatch(text, -1) {
		micros, err := strconv.ParseFloat(match[3], 64)
		if err != nil {
			return nil, err
		}
		total += micros
		most[match[1]] = max(most[match[1]], micros)
	}
	var parts []model.Part
	for _, k := range brokerKinds() {
		if most[k.kind] == 0 {
			return nil, fmt.Errorf("the trace of the broker has no process %s: %.200s", k.kind, text)
		}
		parts = append(parts, model.Part{Side: k.side, Name: k.name, Micros: cpu * most[k.kind] / total})
	}
	return parts, nil
}
