package health

import (
	"fmt"

	"rabbitmq-rpc/pkg/amqpx"
)

// readiness is the body of /readyz.
type readiness struct {
	// State is the state of the connection, such as "ready" or "reconnecting".
	State string `json:"state"`
	// Reason says in plain words why the service is not ready. For a client that is ready,
	// Reason describes a problem with the request queue.
	Reason string `json:"reason"`
	// Broker is the host:port of the current or last broker.
	Broker string `json:"broker"`
	// Generation counts the connections that became ready.
	Generation uint64 `json:"generation"`
	// StuckHandlers counts the handlers that still run after their time limit.
	StuckHandlers int `json:"stuck_handlers,omitempty"`
}

// ready reports whether the service is ready, and returns the body of /readyz.
func (s *service) ready() (bool, readiness) {
	status := s.source.Status()
	response, ready := report(status), status.Ready()
	if s.handlers == nil {
		return ready, response
	}
	stats := s.handlers.Stats()
	response.StuckHandlers = stats.Stuck
	if held := stats.Stuck - stats.Workers; ready && held > 0 {
		response.Reason = fmt.Sprintf("handlers are stuck: %d of %d workers wait for them", held, stats.Workers)
		ready = false
	}
	return ready, response
}

func report(s amqpx.Status) readiness {
	return readiness{State: s.State.String(), Reason: reason(s), Broker: s.Broker, Generation: s.Generation}
}

func reason(s amqpx.Status) string {
	switch s.State {
	case amqpx.StateReady:
		return s.Reason
	case amqpx.StateBlocked:
		return because("the broker blocks publishing", s.Reason)
	case amqpx.StateDraining:
		return "shutting down: finishing what has begun"
	case amqpx.StateClosed:
		return "shut down"
	default:
		text := "not connected to the broker yet"
		if s.Generation > 0 {
			text = "lost the connection to the broker, reconnecting"
		}
		if s.Err != nil {
			return because(text, s.Err.Error())
		}
		return text
	}
}

func because(text, detail string) string {
	if detail == "" {
		return text
	}
	return text + ": " + detail
}
