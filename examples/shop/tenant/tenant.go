// Package tenant carries the customer of a call from service to service.
package tenant

import (
	"context"
	"maps"

	"rabbitmq-rpc/pkg/amqpx"
)

type key struct{}

// With returns a context of a tenant.
func With(ctx context.Context, name string) context.Context {
	return context.WithValue(ctx, key{}, name)
}

// Of returns the tenant of a context; "" if it has none.
func Of(ctx context.Context) string {
	name, _ := ctx.Value(key{}).(string)
	return name
}

// Carry is middleware of clients and servers. A client sends the tenant of the context in a header,
// from which a server sets the tenant of its handler's context.
func Carry(next amqpx.Handler) amqpx.Handler {
	return func(ctx context.Context, req *amqpx.Request) ([]byte, error) {
		if name, ok := req.Header["tenant"].(string); ok {
			return next(With(ctx, name), req)
		}
		own := *req
		own.Header = map[string]any{"tenant": Of(ctx)}
		maps.Copy(own.Header, req.Header)
		return next(ctx, &own)
	}
}
