package amqpx

// serverMethod is one registered function.
type serverMethod struct {
	name       string
	handler    Handler
	atMostOnce bool
	known      executionTable // of executions
	times      handlerTimes
}

// HandleOption configures one method of a [Server].
type HandleOption func(*serverMethod)

// AtMostOnce makes the method run at most once for each request. The default is at
// least once: what a server had in hand when it died, or lost its link, runs again.
// With AtMostOnce a request that was handed out before, or that its caller has sent
// before, is run only if it certainly has not been: if this very process ran it, and still
// has its response ([WithReplay]), that is sent again; else the caller gets [CodeUnavailable] with [MayHaveRun].
//
// The guarantee is as good as the broker's redelivered flag (AMQP 0-9-1 section
// 1.8.3.13). RabbitMQ keeps it over every loss of a link or a server; over the kill
// of a node, for quorum queues and for messages that are not persistent.
func AtMostOnce() HandleOption { return func(m *serverMethod) { m.atMostOnce = true } }
