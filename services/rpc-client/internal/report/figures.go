package report

import (
	"fmt"
	"math"

	"rabbitmq-rpc/internal/chart"
)

// throughput shows settled calls over time, and the changes of the connection.
func (r *Report) throughput() *chart.Figure {
	u := r.timeUnit()
	ok := chart.Line{Ink: chart.First, Steps: true, Fill: true}
	bad := chart.Line{Ink: chart.Bad, Steps: true}
	peak, worst := 0.0, 0.0
	for i, s := range r.Timeline {
		if s.Seconds <= 0 {
			continue
		}
		good, failed := float64(s.OK)/s.Seconds, float64(s.Errors)/s.Seconds
		peak, worst = max(peak, good), max(worst, failed)
		ends := []float64{s.Start}
		if i == len(r.Timeline)-1 {
			ends = append(ends, s.Start+s.Seconds)
		}
		for _, at := range ends {
			ok.Points = append(ok.Points, chart.Point{X: at / u.seconds, Y: good})
			bad.Points = append(bad.Points, chart.Point{X: at / u.seconds, Y: failed})
		}
	}
	f := &chart.Figure{
		ID: "throughput", Title: "Throughput over time",
		Desc: fmt.Sprintf("Calls settled per second: at most %s answered as expected and %s failed. %d changes of the connection.",
			chart.Short(peak), chart.Short(worst), len(r.Events)+r.EventsOmitted),
		X:     r.timeScale(u),
		Y:     chart.Scale{Label: "calls settled per second", Max: headroom(max(peak, worst))},
		Lines: []chart.Line{ok},
	}
	if worst > 0 {
		f.Lines = append(f.Lines, bad)
	}
	r.markEvents(f, u)
	return f
}

// latencyOverTime shows the latencies of settled calls over time.
func (r *Report) latencyOverTime() *chart.Figure {
	u := r.timeUnit()
	median := chart.Line{Ink: chart.First}
	tail := chart.Line{Ink: chart.Second, Dashed: true}
	low, high := math.Inf(1), 0.0
	for _, s := range r.Timeline {
		at, p50, p99 := (s.Start+s.Seconds/2)/u.seconds, math.NaN(), math.NaN()
		if s.OK > 0 {
			p50, p99 = max(s.P50MS, shortest), max(s.P99MS, shortest)
			low, high = min(low, p50), max(high, p99)
		}
		median.Points = append(median.Points, chart.Point{X: at, Y: p50})
		tail.Points = append(tail.Points, chart.Point{X: at, Y: p99})
	}
	f := &chart.Figure{
		ID: "latency-time", Title: "Latency over time",
		Desc:  fmt.Sprintf("The 50th and the 99th percentile, between %s and %s milliseconds.", chart.Short(low), chart.Short(high)),
		X:     r.timeScale(u),
		Y:     milliseconds(low, high),
		Lines: []chart.Line{tail, median},
	}
	r.markEvents(f, u)
	return f
}

// latencyCurve shows the latency by percentile.
func (r *Report) latencyCurve() *chart.Figure {
	return &chart.Figure{
		ID: "percentiles", Title: "Latency by percentile",
		Desc: fmt.Sprintf("Half of the calls took at most %v milliseconds, 99 %% at most %v, the slowest %v.",
			r.LatencyMS.P50, r.LatencyMS.P99, r.LatencyMS.Max),
		X:     percentScale(r.Percentiles),
		Y:     milliseconds(r.LatencyMS.Min, r.LatencyMS.Max),
		Lines: []chart.Line{curve(r.Percentiles, chart.First, false)},
	}
}

// latencyHistogram shows the distribution of the latencies.
func (r *Report) latencyHistogram() *chart.Figure {
	f := &chart.Figure{
		ID: "histogram", Title: "Latency histogram",
		Desc: fmt.Sprintf("How many calls took how long, from %v to %v milliseconds.", r.LatencyMS.Min, r.LatencyMS.Max),
		X:    chart.Scale{Label: "milliseconds", Log: true},
		Y:    chart.Scale{Label: "calls"},
	}
	most := int64(0)
	for i, b := range r.Histogram {
		if i == 0 {
			f.X.Min = b.FromMS
		}
		f.X.Max = b.ToMS
		most = max(most, b.Calls)
		f.Bars = append(f.Bars, chart.Bar{From: b.FromMS, To: b.ToMS, Y: float64(b.Calls)})
	}
	f.Y.Max = headroom(float64(most))
	const narrow = 1.5
	if f.X.Max < narrow*f.X.Min { // a single value must not fill the whole width
		f.X.Min, f.X.Max = f.X.Min/narrow, f.X.Max*narrow
	}
	return f
}

// serverTimes shows the time inside the server: the wait for a worker, the handler, and, for
// comparison, the whole latency.
func (r *Report) serverTimes() *chart.Figure {
	longest := r.QueueWaitMS.Percentiles
	if len(r.HandlerMS.Percentiles) > len(longest) {
		longest = r.HandlerMS.Percentiles
	}
	x := percentScale(longest)
	all := curve(r.Percentiles, chart.Third, true)
	inside := all.Points[:0:0]
	high := max(r.QueueWaitMS.Max, r.HandlerMS.Max)
	for _, p := range all.Points {
		if p.X <= x.Max { // there are fewer samples than calls
			inside = append(inside, p)
			high = max(high, p.Y)
		}
	}
	all.Points = inside
	low := high
	for _, times := range [][]Percentile{r.QueueWaitMS.Percentiles, r.HandlerMS.Percentiles} {
		if len(times) > 0 {
			low = min(low, times[0].MS)
		}
	}
	low = roundDown(max(low, shortest))
	return &chart.Figure{
		ID: "server", Title: "Time inside the server",
		Desc: fmt.Sprintf("Half of the sampled calls waited at most %v milliseconds for a worker, and their handlers ran at most %v.",
			r.QueueWaitMS.P50, r.HandlerMS.P50),
		X: x,
		Y: chart.Scale{Label: "milliseconds", Min: low, Max: max(high, 10*low), Log: true},
		Lines: []chart.Line{
			all,
			curve(r.HandlerMS.Percentiles, chart.Second, true),
			curve(r.QueueWaitMS.Percentiles, chart.First, false),
		},
	}
}

// markEvents adds the changes of the connection to a figure over time.
func (r *Report) markEvents(f *chart.Figure, u timeUnit) {
	since := make(map[EventKind]float64)
	closeBand := func(kind EventKind, until float64) {
		if from, open := since[kind]; open {
			f.Bands = append(f.Bands, chart.Band{From: from, To: until, Ink: chart.Shadow})
			delete(since, kind)
		}
	}
	for _, e := range r.Events {
		at := e.At / u.seconds
		switch e.Kind {
		case EventLost, EventBlocked:
			since[e.Kind] = at
		case EventUnblocked:
			closeBand(EventBlocked, at)
		case EventConnect, EventReconnect:
			closeBand(EventLost, at)
		}
		if e.Kind != EventLost && e.Kind != EventUnblocked {
			f.Marks = append(f.Marks, chart.Mark{X: at, Label: string(e.Kind), Ink: chart.Bad})
		}
	}
	for kind := range since {
		closeBand(kind, f.X.Max)
	}
}
