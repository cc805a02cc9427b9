// Package transport has the connections of package amqpx to a broker: dialing, TLS, the socket
// and the frames under amqp091-go, the messages and acknowledgements that bypass amqp091-go,
// the declaration of queues, the session, which is one generation of connections, the
// supervisor, which keeps a session alive, and the kinds of faults. It knows neither calls nor
// handlers. The interfaces Dialer, Conn and Channel are the operations that package amqpx needs
// from a broker; unit tests implement them with a broker in memory.
package transport
