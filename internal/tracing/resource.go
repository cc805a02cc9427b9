package tracing

import (
	"context"

	"github.com/google/uuid"
	"go.opentelemetry.io/otel/sdk/resource"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"

	"rabbitmq-rpc/internal/version"
)

// newResource says which process the spans are of. What OTEL_SERVICE_NAME and
// OTEL_RESOURCE_ATTRIBUTES give comes first. An error means that something could not be
// found out, such as the host's name; the rest is there.
func newResource(ctx context.Context, service string) (*resource.Resource, error) {
	return resource.New(ctx,
		resource.WithHost(),
		resource.WithTelemetrySDK(),
		resource.WithAttributes(
			semconv.ServiceName(service),
			semconv.ServiceVersion(version.Of().Version),
			semconv.ServiceInstanceID(uuid.NewString()),
		),
		resource.WithFromEnv(),
	)
}
