package gateway

import (
	"encoding/json"
	"errors"
	"math"
	"net/http"
	"strconv"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"

	"rabbitmq-rpc/pkg/amqpx"
)

// respond writes a value, or the error of a call with its status, details and Retry-After.
func respond(w http.ResponseWriter, value any, err error) {
	if failed, ok := errors.AsType[*amqpx.Error](err); ok {
		problem := Problem{Code: failed.Code(), Message: failed.Message()}
		_, _ = amqpx.Detail(err, &problem.BadRequest), amqpx.Detail(err, &problem.ErrorInfo)
		if after := failed.RetryAfter(); after > 0 {
			w.Header().Set("Retry-After", strconv.Itoa(int(math.Ceil(after.Seconds()))))
		}
		value = problem
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(amqpx.CodeOf(err).HTTPStatus())
	_ = json.NewEncoder(w).Encode(value)
}

// traced starts the span of a request, in the trace of its caller.
func traced(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx := otel.GetTextMapPropagator().Extract(r.Context(), propagation.HeaderCarrier(r.Header))
		ctx, span := otel.Tracer("shop").Start(ctx, r.Method+" "+r.URL.Path, trace.WithSpanKind(trace.SpanKindServer))
		defer span.End()
		next.ServeHTTP(w, r.WithContext(ctx))
	})
}
