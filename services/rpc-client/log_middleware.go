package main

import (
	"context"
	"time"

	"go.uber.org/zap"

	"rabbitmq-rpc/pkg/amqpx"
	"rabbitmq-rpc/services/rpc-client/internal/report"
)

// logResponses logs the result of each call at debug level.
func logResponses(logger *zap.Logger) amqpx.Middleware {
	return func(next amqpx.Handler) amqpx.Handler {
		return func(ctx context.Context, req *amqpx.Request) ([]byte, error) {
			start := time.Now()
			response, err := next(ctx, req)
			fields := []zap.Field{
				zap.String("method", req.Method),
				zap.String("correlation_id", req.CorrelationID),
				zap.Float64("latency_ms", report.Milliseconds(time.Since(start))),
			}
			if err != nil {
				fields = append(fields, zap.Stringer("code", amqpx.CodeOf(err)), zap.Error(err))
			} else {
				fields = append(fields, zap.Int("bytes", len(response)))
			}
			logger.Debug("response", fields...)
			return response, err
		}
	}
}
