package health

import "rabbitmq-rpc/pkg/amqpx"

// readiness is the body of /readyz.
type readiness struct {
	// State is the link's state, such as "ready" or "reconnecting".
	State string `json:"state"`
	// Reason says in plain words why the service is not ready; empty when it is.
	Reason string `json:"reason"`
	// Broker is the host:port of the current or last broker.
	Broker string `json:"broker"`
	// Generation counts the links that became ready.
	Generation uint64 `json:"generation"`
}

func report(s amqpx.Status) readiness {
	return readiness{State: s.State.String(), Reason: reason(s), Broker: s.Broker, Generation: s.Generation}
}

func reason(s amqpx.Status) string {
	switch s.State {
	case amqpx.StateReady:
		return ""
	case amqpx.StateBlocked:
		return because("the broker blocks publishing", s.Reason)
	case amqpx.StateDraining:
		return "shutting down: finishing what has begun"
	case amqpx.StateClosed:
		return "shut down"
	default:
		text := "not connected to the broker yet"
		if s.Generation > 0 {
			text = "lost the link to the broker, connecting again"
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
