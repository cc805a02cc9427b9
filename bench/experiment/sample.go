package experiment

import (
	"math"
	"runtime"
	"time"

	"rabbitmq-rpc/bench/process"
)

// Sample holds the figures of a setup's turn in a round.
type Sample struct {
	Rate           float64 // calls per second
	P50, P99, P999 float64 // latency in milliseconds, without the calls that are recorded apart
	ApartP50       float64
	ApartP99       float64
	Missed         float64 // calls of an open loop that did not start before the loop was aborted
	Client         Cost
	Server         Cost
	BrokerCPU      float64 // microseconds for one call; 0 when not measured
	Memory         Memory
	Processors     float64               // of the machine, without those that other programs used; 0 when not measured
	Messages       float64               // published for one call, requests and responses; 0 when not measured
	Broker         process.BrokerFigures // at the end of a turn; zero when not measured
}

// Cost is the usage per call on the client's or the server's side.
type Cost struct {
	CPU    float64 // microseconds of processor time
	Allocs float64
	Bytes  float64
}

// Memory is the resident memory at the end of a turn, in megabytes.
type Memory struct {
	Client, ClientPeak, ServerPeak float64
	ClientStacks, ClientHeap       float64 // of Go programs
	Broker                         float64 // 0 when not measured
}

func newSample(m process.Measurement) Sample {
	o, before, after := m.Outcome, m.Before, m.After
	return Sample{
		Processors: processors(before, after),
		Rate:       float64(o.Calls) / o.Elapsed.Seconds(),
		P50:        float64(o.All.P50) / 1e3,
		P99:        float64(o.All.P99) / 1e3,
		P999:       float64(o.All.P999) / 1e3,
		ApartP50:   float64(o.Apart.P50) / 1e3,
		ApartP99:   float64(o.Apart.P99) / 1e3,
		Missed:     float64(o.Missed),
		Client:     newCost(after.Client.Since(before.Client), o.Calls),
		Server:     newCost(after.Server.Since(before.Server), o.Calls),
		BrokerCPU:  perCall(after.Broker-before.Broker, o.Calls),
		Memory:     newMemory(m.Memory),
	}
}

// processors returns how many processors other programs left, on average.
func processors(before, after process.Consumption) float64 {
	idle := after.Machine.Idle - before.Machine.Idle
	total := after.Machine.Busy - before.Machine.Busy + idle
	own := after.Client.CPU - before.Client.CPU + after.Server.CPU - before.Server.CPU + after.Broker - before.Broker
	if total <= 0 {
		return 0
	}
	return float64(runtime.NumCPU()) * min(float64(own+idle)/float64(total), 1)
}

func newCost(u process.Usage, calls int64) Cost {
	n := float64(calls)
	c := Cost{
		CPU:    perCall(u.CPU, calls),
		Allocs: float64(u.Mallocs) / n,
		Bytes:  float64(u.Bytes) / n,
	}
	if u.Mallocs == 0 { // another program, which does not count them
		c.Allocs, c.Bytes = math.NaN(), math.NaN()
	}
	return c
}

func newMemory(c process.Consumption) Memory {
	return Memory{
		Client:       megabytes(c.Client.RSS),
		ClientPeak:   megabytes(c.Client.Peak),
		ServerPeak:   megabytes(c.Server.Peak),
		ClientStacks: megabytes(c.Client.Stacks),
		ClientHeap:   megabytes(c.Client.Heap),
	}
}

func megabytes(bytes uint64) float64 { return float64(bytes) / 1e6 }

func perCall(d time.Duration, calls int64) float64 {
	return float64(d.Nanoseconds()) / 1e3 / float64(calls)
}

// Figures of a sample for tables, plots and goals.
func rate(s Sample) float64     { return s.Rate }
func p50(s Sample) float64      { return s.P50 }
func p99(s Sample) float64      { return s.P99 }
func p999(s Sample) float64     { return s.P999 }
func apartP50(s Sample) float64 { return s.ApartP50 }
func apartP99(s Sample) float64 { return s.ApartP99 }

func clientMemory(s Sample) float64 { return s.Memory.Client }
func serverMemory(s Sample) float64 { return s.Memory.ServerPeak }
