package amqpxprom

import "rabbitmq-rpc/pkg/amqpx"

// serverFigures returns the metrics of a server's statistics.
func serverFigures(queue string) figures[amqpx.ServerStats] {
	type stats = amqpx.ServerStats
	f := figures[stats]{queue: queue}
	f.counter("amqpx_server_requests_total", "Requests received from the queue.",
		func(s *stats) float64 { return float64(s.Requests) })
	f.gauge("amqpx_server_requests_in_flight", "Requests received from the queue that are not finished yet.",
		func(s *stats) float64 { return float64(s.InFlight) })
	f.gauge("amqpx_server_requests_waiting", "Requests that wait in the server for a worker.",
		func(s *stats) float64 { return float64(s.Waiting) })
	f.gauge("amqpx_server_workers", "Handlers that may run at once.",
		func(s *stats) float64 { return float64(s.Workers) })
	f.gauge("amqpx_server_workers_busy", "Handlers that run.",
		func(s *stats) float64 { return float64(s.Busy) })
	f.gauge("amqpx_server_stuck_handlers", "Handlers that run on though their time limit has passed.",
		func(s *stats) float64 { return float64(s.Stuck) })
	f.gauge("amqpx_server_oldest_handler_seconds", "How long the handler that began first has run.",
		func(s *stats) float64 { return s.OldestHandler.Seconds() })
	f.counter("amqpx_server_panics_total", "Handlers that panicked.",
		func(s *stats) float64 { return float64(s.Panics) })
	f.counter("amqpx_server_expired_requests_total", "Requests whose time was over before they could run.",
		func(s *stats) float64 { return float64(s.Expired) })
	f.counter("amqpx_server_shed_requests_total", "Refused requests that would have expired before a worker was free.",
		func(s *stats) float64 { return float64(s.Shed) })
	f.counter("amqpx_server_too_large_requests_total", "Requests and batches beyond the size limit, which were not read.",
		func(s *stats) float64 { return float64(s.TooLarge) })
	f.counter("amqpx_server_deferred_requests_total", "Deliveries for whose bodies there was no room.",
		func(s *stats) float64 { return float64(s.Deferred) })
	f.counter("amqpx_server_caller_limited_requests_total", "Refused requests of callers who had as much in hand as they may.",
		func(s *stats) float64 { return float64(s.CallerLimited) })
	f.counter("amqpx_server_reply_refused_requests_total", "Requests that were not run because of their reply_to.",
		func(s *stats) float64 { return float64(s.ReplyRefused) })
	f.counter("amqpx_server_default_exchange_requests_total", "Requests that callers published to the default exchange.",
		func(s *stats) float64 { return float64(s.DefaultExchange) })
	f.gauge("amqpx_server_bytes_in_hand", "Bytes of the bodies of requests that are not acknowledged.",
		func(s *stats) float64 { return float64(s.BytesInHand) })
	f.counter("amqpx_server_replayed_requests_total", "Duplicates that got the response of the request they repeat.",
		func(s *stats) float64 { return float64(s.Replayed) })
	f.counter("amqpx_server_requeued_requests_total", "Requests that a drain put back into the queue.",
		func(s *stats) float64 { return float64(s.Requeued) })
	f.counter("amqpx_server_republished_requests_total", "Requests republished because a server had lost them.",
		func(s *stats) float64 { return float64(s.Republished) })
	f.counter("amqpx_server_dead_letters_total", "Requests that were dead-lettered.",
		func(s *stats) float64 { return float64(s.Dead) })
	f.counter("amqpx_server_undeliverable_responses_total", "Responses dropped because they ended the connection they were published on.",
		func(s *stats) float64 { return float64(s.Undeliverable) })
	f.counter("amqpx_server_unroutable_responses_total", "Responses that no queue accepted: their callers are gone, or named no queue.",
		func(s *stats) float64 { return float64(s.Unroutable) })
	f.counter("amqpx_server_canceled_requests_total", "Requests canceled by their callers.",
		func(s *stats) float64 { return float64(s.Canceled) })
	f.counter("amqpx_server_batched_requests_total", "Requests that came in a batch.",
		func(s *stats) float64 { return float64(s.Batched) })
	f.counter("amqpx_server_reconnects_total", "Sessions that became ready after the first.",
		func(s *stats) float64 { return float64(s.Reconnects) })
	f.counter("amqpx_server_blocked_seconds_total", "How long the broker has blocked publishing.",
		func(s *stats) float64 { return s.Blocked.Seconds() })
	f.streams("amqpx_server_", func(s *stats) *amqpx.StreamStats { return &s.Streams })
	return f
}
