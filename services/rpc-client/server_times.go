package main

import (
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"

	"rabbitmq-rpc/pkg/amqpx"
	"rabbitmq-rpc/services/rpc-client/internal/report"
)

// ServerTimes holds the times that servers reported for the sampled calls, in microseconds,
// the unit on the wire.
type ServerTimes struct{ Queue, Handler *hdrhistogram.Histogram }

func newServerTimes() *ServerTimes {
	const digits = 3
	most := slowest.Microseconds()
	return &ServerTimes{Queue: hdrhistogram.New(1, most, digits), Handler: hdrhistogram.New(1, most, digits)}
}

// add counts the times of a call. Two zeros are ignored, because a response without times
// looks the same.
func (s *ServerTimes) add(info amqpx.CallInfo) {
	if info.Queue == 0 && info.Handler == 0 {
		return
	}
	most := slowest.Microseconds()
	_ = s.Queue.RecordValue(min(info.Queue.Microseconds(), most)) // within the limit, like the next
	_ = s.Handler.RecordValue(min(info.Handler.Microseconds(), most))
}

// serverTime returns the report's entry for a histogram.
func serverTime(h *hdrhistogram.Histogram) report.ServerTime {
	at := func(percent float64) float64 { return inMilliseconds(h.ValueAtPercentile(percent), time.Microsecond) }
	s := report.ServerTime{Sampled: h.TotalCount(), Percentiles: Percentiles(h, time.Microsecond)}
	if s.Sampled > 0 {
		s.P50, s.P90, s.P99, s.Max = at(50), at(90), at(99), inMilliseconds(h.Max(), time.Microsecond)
	}
	return s
}

func inMilliseconds(v int64, unit time.Duration) float64 {
	return report.Milliseconds(time.Duration(v) * unit)
}
