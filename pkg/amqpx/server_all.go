package amqpx

import (
	"strings"

	amqp "github.com/rabbitmq/amqp091-go"

	"rabbitmq-rpc/pkg/amqpx/internal/transport"
)

// Calls to all servers. A server with methods for them consumes one queue more, of its own, which
// is bound to a fanout exchange. The queue is deleted with its consumer, so a request never comes
// twice.

// OnEveryServer allows calls of the method to all servers at once ([Client.CallAll]), besides
// calls to one server. The option is for methods about a server, such as dropping a cache; other
// methods refuse calls to all servers with [CodeFailedPrecondition], because most work, such as
// placing an order, must be done once.
//
// The server needs the permissions of its control plane ([WithControl]), for the exchange
// "<queue>.control.all" and a queue whose name begins with that of the exchange. While the broker
// refuses them, the server logs a warning, and receives no calls to all servers. The option has
// no effect on streams.
func OnEveryServer() HandleOption { return func(m *serverMethod) { m.everywhere = true } }

const (
	// allPrefetch bounds the calls to all servers in a server.
	allPrefetch = 64
	// allLength bounds the calls that wait for a server; beyond, the oldest are dropped.
	allLength = 1024
)

// allExchange returns the name of the exchange of the calls to all servers.
func (q Queue) allExchange() string { return q.controlExchange() + ".all" }

// allCompanion returns the queue of this server for calls to all servers; nil if it has no method
// for them.
func (s *Server) allCompanion() *companion {
	for _, m := range s.methods {
		if m.everywhere {
			name := s.cfg.queue.allExchange() + "." + strings.ReplaceAll(newID(), "-", "")
			return &companion{queue: Queue{Name: name}, prefetch: allPrefetch, shard: noShard, up: &s.allUp, all: true}
		}
	}
	return nil
}

// declareAll declares the exchange and the queue of a companion for calls to all servers.
func (s *Server) declareAll(sess *transport.Session, k *companion) error {
	exchange := s.cfg.queue.allExchange()
	return transport.AtStep(transport.StepDeclare, k.queue.Name, transport.WithTempChannel(sess.Sub, func(ch transport.Channel) error {
		if err := ch.ExchangeDeclare(exchange, amqp.ExchangeFanout, true, false, false, false, nil); err != nil {
			return err
		}
		if _, err := ch.QueueDeclare(k.queue.Name, false, true, true, false, amqp.Table{amqp.QueueMaxLenArg: int64(allLength)}); err != nil {
			return err
		}
		return ch.QueueBind(k.queue.Name, "", exchange, false, nil)
	}))
}

// refusesAll returns the refusal of a call to all servers that this server does not run; nil if
// it runs the request.
func (req *inboundRequest) refusesAll() *Error {
	s := req.delivery.consumer.server
	switch {
	case !req.delivery.consumer.all:
		return nil
	case s.isDraining(): // no other server can take it
		return refusal(CodeUnavailable, "the server drains")
	case req.method != nil && !req.method.everywhere:
		return refusal(CodeFailedPrecondition, "method %q of this server takes no calls to all servers", req.method.name)
	default:
		return nil
	}
}
