package tracing

import (
	"context"
	"sync/atomic"

	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.uber.org/zap"
)

// exporter logs lost spans. The SDK would report only failed exports, and only to a handler
// that is global to the process; spans dropped because the queue is full are not reported.
type exporter struct {
	sdktrace.SpanExporter

	log    *zap.Logger
	failed *complaints
	counts counter
	taken  atomic.Int64 // spans passed to ExportSpans, exported or not
}

// ExportSpans exports spans. A failure is logged here, and not returned.
func (e *exporter) ExportSpans(ctx context.Context, spans []sdktrace.ReadOnlySpan) error {
	e.taken.Add(int64(len(spans)))
	if err := e.SpanExporter.ExportSpans(ctx, spans); err != nil {
		e.failed.add(err, len(spans))
	}
	return nil
}

// sum logs the unreported losses after the last export.
func (e *exporter) sum() {
	e.failed.flush()
	// An export that is still in progress after a cut counts as taken, and will soon fail.
	if lost := e.counts.ended.Load() - e.taken.Load(); lost > 0 {
		e.log.Warn("spans found no place in the queue for export", zap.Int64("spans", lost))
	}
}

// counter counts the sampled spans that ended.
type counter struct{ ended atomic.Int64 }

// OnStart does nothing.
func (*counter) OnStart(context.Context, sdktrace.ReadWriteSpan) {}

// OnEnd counts a span.
func (c *counter) OnEnd(s sdktrace.ReadOnlySpan) {
	if s.SpanContext().IsSampled() {
		c.ended.Add(1)
	}
}

// ForceFlush does nothing.
func (*counter) ForceFlush(context.Context) error { return nil }

// Shutdown does nothing.
func (*counter) Shutdown(context.Context) error { return nil }
