package loadgen

import (
	"time"

	"rabbitmq-rpc/pkg/amqpx"
)

// ServerTimes holds the times that servers reported for the sampled calls, in microseconds,
// the unit on the wire.
type ServerTimes struct{ Queue, Handler *Histogram }

func newServerTimes() *ServerTimes {
	const digits = 3
	return &ServerTimes{
		Queue:   NewHistogram(time.Microsecond, time.Microsecond, slowest, digits),
		Handler: NewHistogram(time.Microsecond, time.Microsecond, slowest, digits),
	}
}

// add counts the times of a call. Two zeros are ignored, because a response without times
// looks the same.
func (s *ServerTimes) add(info amqpx.CallInfo) {
	if info.QueueTime == 0 && info.HandlerTime == 0 {
		return
	}
	s.Queue.Record(info.QueueTime)
	s.Handler.Record(info.HandlerTime)
}

// merge adds other times.
func (s *ServerTimes) merge(other *ServerTimes) {
	s.Queue.Merge(other.Queue)
	s.Handler.Merge(other.Handler)
}

// reset removes all times.
func (s *ServerTimes) reset() {
	s.Queue.reset()
	s.Handler.reset()
}
