package main

import (
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"

	"rabbitmq-rpc/pkg/amqpx"
	"rabbitmq-rpc/services/rpc-client/internal/report"
)

// serverTimes holds the times that servers reported for the sampled calls, in microseconds,
// the unit on the wire.
type serverTimes struct{ queue, handler *hdrhistogram.Histogram }

func newServerTimes() *serverTimes {
	const digits = 3
	most := slowest.Microseconds()
	return &serverTimes{queue: hdrhistogram.New(1, most, digits), handler: hdrhistogram.New(1, most, digits)}
}

// add counts the times of a call. Two zeros are ignored, because a response without times
// looks the same.
func (s *serverTimes) add(info amqpx.CallInfo) {
	if info.Queue == 0 && info.Handler == 0 {
		return
	}
	most := slowest.Microseconds()
	_ = s.queue.RecordValue(min(info.Queue.Microseconds(), most)) // within the limit, like the next
	_ = s.handler.RecordValue(min(info.Handler.Microseconds(), most))
}

// serverTime returns the report's entry for a histogram.
func serverTime(h *hdrhistogram.Histogram) report.ServerTime {
	at := func(percent float64) float64 { return inMilliseconds(h.ValueAtPercentile(percent), time.Microsecond) }
	s := report.ServerTime{Sampled: h.TotalCount(), Percentiles: percentiles(h, time.Microsecond)}
	if s.Sampled > 0 {
		s.P50, s.P90, s.P99, s.Max = at(50), at(90), at(99), inMilliseconds(h.Max(), time.Microsecond)
	}
	return s
}

func inMilliseconds(v int64, unit time.Duration) float64 {
	return report.Milliseconds(time.Duration(v) * unit)
}
