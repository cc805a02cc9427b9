// Package amqpxprom provides Prometheus metrics for amqpx clients and servers. As a separate
// package, it keeps amqpx free of a metrics library.
//
// # Use
//
// Create the metrics before the client and pass them to the client as its observer; then call
// Watch with the client. Plain counters are read from the client's statistics at each scrape
// and cost nothing between scrapes.
//
//	metrics := amqpxprom.NewClientMetrics("orders")
//	client, err := amqpx.NewClient(url, amqpx.WithClientObserver(metrics), …)
//	metrics.Watch(client)
//	err = registry.Register(metrics)
//
// A server works in the same way, with [NewServerMetrics]. Every metric has the label "queue"
// with the queue's name, so one registry can hold the metrics of several queues. To
// distinguish two clients of one queue in one process, use [prometheus.WrapRegistererWith].
//
// # Bounds
//
// The label "code" is "ok" or one of amqpx's codes. On a server, the label "method" is a
// registered method, or "unknown" for a request with an unregistered method. On a client, the
// label is one of the first [DefaultMaxMethods] method names called, or "other". Invalid UTF-8
// is replaced. Callers therefore cannot make the number of a process's time series unbounded.
//
// Histograms have classic buckets, and native buckets as well with [WithNativeHistograms].
//
// # Cost
//
// Recording a call takes no lock, no allocation, and about 50 ns on a client and 100 ns on a
// server (go test -C pkg/amqpxprom -bench .).
package amqpxprom
