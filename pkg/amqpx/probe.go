package amqpx

import (
	"errors"
	"time"
)

// errDeaf means that the broker answers nothing, though it may still send heartbeats.
var errDeaf = errors.New("the broker does not answer")

// probe asks the broker for an answer on every connection, twice in each heartbeat, and
// ends the session when none comes for one and a half. The heartbeats of the protocol
// tell each side that it hears the other, not that it is heard: of that RabbitMQ
// learns first, after two to three heartbeats. A broker that blocks publishing does
// not read, so it need not answer.
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
	limit := time.NewTimer(within)
	defer limit.Stop()
	select {
	case <-answered:
		return true
	case <-s.done:
		return true
	case <-limit.C:
	}
	if ch != s.probeCh || s.gate.opening() == nil {
		return false
	}
	select { // it stopped reading before it could answer
	case <-answered:
	case <-s.done:
	}
	return true
}
