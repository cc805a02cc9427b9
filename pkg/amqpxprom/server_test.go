package amqpxprom

import (
	"testing"
	"time"

	"rabbitmq-rpc/pkg/amqpx"
)

func TestServerShowsEveryFigure(t *testing.T) {
	t.Parallel()
	m := NewServerMetrics("q")
	m.Watch(serverSource{state: amqpx.StateDraining, stats: amqpx.ServerStats{
		Requests: 1, InFlight: 2, OK: 3, Failed: 4, Panics: 5, Refused: 6, Expired: 7, Shed: 8, Replayed: 9,
		Requeued: 10, Republished: 11, Dead: 12, Batched: 13, Reconnects: 14, Blocked: 1500 * time.Millisecond,
		Workers: 16, Busy: 17, Waiting: 18, Canceled: 19, Undeliverable: 20, Stuck: 20, OldestHandler: 21500 * time.Millisecond, TooLarge: 21, Deferred: 22, BytesInHand: 23,
		Unroutable: 24, CallerLimited: 25, ReplyRefused: 26, DefaultExchange: 27, Streams: streamStats(),
	}})
	m.HandlerEnded("a", "", time.Second, time.Millisecond)
	m.HandlerEnded("a", amqpx.CodeInternal, 0, 2*time.Millisecond)
	m.RequestRefused("b", amqpx.CodeResourceExhausted)
	m.RequestRefused("", amqpx.CodeUnimplemented)
	m.RequestRefused("", amqpx.CodeUnimplemented)
	m.BatchReceived(7)
	m.StreamEnded("s", "", time.Hour, amqpx.Progress{})
	m.StreamEnded("s", amqpx.CodeCanceled, time.Second, amqpx.Progress{})
	want(t, m, "", withStreams("amqpx_server_", map[string]float64{
		"amqpx_server_handler_duration_seconds{a,ok}":                1,
		"amqpx_server_handler_duration_seconds{a,internal}":          1,
		"amqpx_server_queue_wait_seconds{a}":                         2,
		"amqpx_server_refused_requests_total{b,resource_exhausted}":  1,
		"amqpx_server_refused_requests_total{unknown,unimplemented}": 2,
		"amqpx_server_batch_size":                                    1,
		"amqpx_server_requests_total":                                1,
		"amqpx_server_requests_in_flight":                            2,
		"amqpx_server_panics_total":                                  5,
		"amqpx_server_expired_requests_total":                        7,
		"amqpx_server_shed_requests_total":                           8,
		"amqpx_server_replayed_requests_total":                       9,
		"amqpx_server_requeued_requests_total":                       10,
		"amqpx_server_republished_requests_total":                    11,
		"amqpx_server_dead_letters_total":                            12,
		"amqpx_server_batched_requests_total":                        13,
		"amqpx_server_reconnects_total":                              14,
		"amqpx_server_blocked_seconds_total":                         1.5,
		"amqpx_server_workers":                                       16,
		"amqpx_server_workers_busy":                                  17,
		"amqpx_server_requests_waiting":                              18,
		"amqpx_server_stuck_handlers":                                20,
		"amqpx_server_oldest_handler_seconds":                        21.5,
		"amqpx_server_canceled_requests_total":                       19,
		"amqpx_server_undeliverable_responses_total":                 20,
		"amqpx_server_unroutable_responses_total":                    24,
		"amqpx_server_too_large_requests_total":                      21,
		"amqpx_server_deferred_requests_total":                       22,
		"amqpx_server_bytes_in_hand":                                 23,
		"amqpx_server_caller_limited_requests_total":                 25,
		"amqpx_server_reply_refused_requests_total":                  26,
		"amqpx_server_default_exchange_requests_total":               27,
		"amqpx_server_connection_state{connecting}":                  0,
		"amqpx_server_connection_state{ready}":                       0,
		"amqpx_server_connection_state{blocked}":                     0,
		"amqpx_server_connection_state{reconnecting}":                0,
		"amqpx_server_connection_state{draining}":                    1,
		"amqpx_server_connection_state{closed}":                      0,
	}))
}

func TestServerShowsWhatItWasToldBeforeItWatches(t *testing.T) {
	t.Parallel()
	m := NewServerMetrics("q")
	m.RequestRefused("b", amqpx.CodeUnimplemented)
	want(t, m, "", map[string]float64{
		"amqpx_server_refused_requests_total{b,unimplemented}": 1,
		"amqpx_server_batch_size":                              0,
	})
}

func TestServerTellsEveryMethodApart(t *testing.T) {
	t.Parallel()
	const methods = 3 * DefaultMaxMethods
	m := NewServerMetrics("q")
	for i := range methods {
		m.HandlerEnded(string(rune('a'+i)), "", 0, 0)
	}
	if got := len(scraped(t, m)); got != 2*methods+1 {
		t.Errorf("%d series, want two for each of %d methods, and that of batches", got, methods)
	}
}
