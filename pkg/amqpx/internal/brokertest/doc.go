// Package brokertest is RabbitMQ in memory for unit tests. Broker implements transport.Dialer,
// and its connections and channels implement transport.Conn and transport.Channel. Faults of
// single messages, hooks for dials and synchronous calls, and access to queues and messages let
// a test arrange every moment of a failure. The conformance suite of the package runs the same
// cases on the broker in memory and on RabbitMQ.
//
// Exported fields are guarded by the broker's lock: a test accesses the fields within
// Broker.With, or while no client and no server uses the broker. Methods take the lock, except
// where a comment says that the caller holds mu.
package brokertest
