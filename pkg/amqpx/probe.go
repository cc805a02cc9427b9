package amqpx

import (
	"time"
)

// errDeaf means that the broker answers nothing, though it may still send heartbeats.
var errDeaf error = &kindError{kind: FaultUnresponsive}

// slowPeriods bounds how long a publishing connection counts as slow, in multiples of the
// time after which a connection without an answer counts as dead.
const slowPeriods = 6

// probe asks the broker for an answer on every connection, twice in each heartbeat, and
// ends the session when none comes for one and a half. The heartbeats of the protocol
// tell each side that it hears the other, not that it is heard: of that RabbitMQ
// learns first, after two to three heartbeats. A broker that blocks publishing does
// not read, so it need not answer.
//
// RabbitMQ also reads no more from a connection that publishes faster than a queue takes
// messages, and says nothing of it: a quorum queue without a majority takes none. So the
// publishing connection of two counts as slow, not as dead, while heartbeats come on it;
// that the broker answers otherwise is what the probe of the consuming one proves.
func (s *session) probe(heartbeat time.Duration) {
	channels := []channel{s.probeCh}
	if s.sub != s.pub {
		channels = append(channels, s.subCh)
	}
	for _, ch := range channels {
		s.run(func() {
			next := time.NewTicker(heartbeat / 2)
			defer next.Stop()
			for {
				select {
				case <-next.C:
				case <-s.done:
					return
				}
				if !s.answers(ch, heartbeat+heartbeat/2) {
					s.fail(errDeaf)
					return
				}
			}
		})
	}
}

// answers reports whether the broker answers on ch in time, or need not.
func (s *session) answers(ch channel, within time.Duration) bool {
	if ch == s.probeCh && s.gate.opening() != nil {
		return true
	}
	answered := make(chan struct{})
	s.run(func() { // ends with the session at the latest: its sockets are cut
		_ = ch.sync() // an error ends the channel, which is watched
		close(answered)
	})
	heard := s.pub.received()
	limit := time.NewTimer(within)
	defer limit.Stop()
	for period := 1; ; period++ {
		select {
		case <-answered:
			return true
		case <-s.done:
			return true
		case <-limit.C:
		}
		if ch == s.probeCh && s.gate.opening() != nil {
			select { // it stopped reading before it could answer
			case <-answered:
			case <-s.done:
			}
			return true
		}
		before := heard
		if heard = s.pub.received(); ch != s.probeCh || s.sub == s.pub || heard == before || period == slowPeriods {
			return false
		}
		limit.Reset(within)
	}
}
