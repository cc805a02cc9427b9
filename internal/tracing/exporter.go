package tracing

import (
	"context"
	"sync/atomic"

	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.uber.org/zap"
)

// exporter tells the log of spans that are lost. The SDK would tell only a handler that all
// of a process shares, and not of those that found no place in its queue.
type exporter struct {
	sdktrace.SpanExporter

	log    *zap.Logger
	failed *complaints
	counts counter
	taken  atomic.Int64 // spans that were exported, or that could not be
}

// ExportSpans exports spans. That it fails is told here.
func (e *exporter) ExportSpans(ctx context.Context, spans []sdktrace.ReadOnlySpan) error {
	e.taken.Add(int64(len(spans)))
	if err := e.SpanExporter.ExportSpans(ctx, spans); err != nil {
		e.failed.add(err, len(spans))
	}
	return nil
}

// sum tells what was not told before, after the last export.
func (e *exporter) sum() {
	e.failed.flush()
	// What is still under way after a cut is neither, and soon fails.
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
