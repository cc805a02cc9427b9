package amqpxprom

import "rabbitmq-rpc/pkg/amqpx"

// clientFigures returns the metrics of a client's statistics.
func clientFigures(queue string) figures[amqpx.ClientStats] {
	type stats = amqpx.ClientStats
	f := figures[stats]{queue: queue}
	f.gauge("amqpx_client_calls_in_flight", "Calls that have not returned yet.",
		func(s *stats) float64 { return float64(s.InFlight) })
	f.counter("amqpx_client_resends_total", "Requests sent beyond each call's first, counted when the call returns.",
		func(s *stats) float64 { return float64(s.Resent) })
	f.counter("amqpx_client_retries_total", "Retries that the retry budget allowed.",
		func(s *stats) float64 { return float64(s.Retried) })
	f.counter("amqpx_client_hedges_total", "Second requests of hedged calls.",
		func(s *stats) float64 { return float64(s.Hedged) })
	f.counter("amqpx_client_rejected_calls_total", "Calls that failed at once, because too many were in flight.",
		func(s *stats) float64 { return float64(s.Rejected) })
	f.counter("amqpx_client_late_responses_total", "Responses that came after their call had ended.",
		func(s *stats) float64 { return float64(s.Late) })
	f.counter("amqpx_client_duplicate_responses_total", "Second responses to one call; they were dropped.",
		func(s *stats) float64 { return float64(s.Duplicates) })
	f.counter("amqpx_client_unknown_responses_total", "Responses to no call of this client; they were dropped.",
		func(s *stats) float64 { return float64(s.Unknown) })
	f.counter("amqpx_client_batched_calls_total", "Requests that were sent in a batch.",
		func(s *stats) float64 { return float64(s.Batched) })
	f.counter("amqpx_client_reconnects_total", "Sessions that became ready after the first.",
		func(s *stats) float64 { return float64(s.Reconnects) })
	f.counter("amqpx_client_blocked_seconds_total", "How long the broker has blocked publishing.",
		func(s *stats) float64 { return s.Blocked.Seconds() })
	return f
}
