// Package gateway is the HTTP API of the shop.
package gateway

import (
	"encoding/json"
	"net/http"

	"rabbitmq-rpc/examples/shop/api"
	"rabbitmq-rpc/examples/shop/tenant"
	"rabbitmq-rpc/pkg/amqpx"
)

// maxBody bounds the body of a request, in bytes.
const maxBody = 64 << 10

// Gateway calls the service of orders for its HTTP requests.
type Gateway struct {
	orders amqpx.Caller
}

// New returns the HTTP API over a service of orders:
//
//	POST /orders       {"item": "tv", "count": 1}; headers Tenant and Idempotency-Key
//	GET  /orders/{id}  header Tenant
//
// A real gateway authenticates the tenant.
func New(orders amqpx.Caller) http.Handler {
	g := &Gateway{orders: orders}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /orders", g.create)
	mux.HandleFunc("GET /orders/{id}", g.get)
	return traced(mux)
}

func (g *Gateway) create(w http.ResponseWriter, r *http.Request) {
	var order api.CreateRequest
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxBody)).Decode(&order); err != nil {
		respond(w, nil, amqpx.Errorf(amqpx.CodeInvalidArgument, "the body: %w", err))
		return
	}
	var opts []amqpx.CallOption
	if key := r.Header.Get("Idempotency-Key"); key != "" {
		opts = append(opts, amqpx.WithIdempotencyKey(key))
	}
	placed, err := api.CreateOrder.Call(tenant.With(r.Context(), r.Header.Get("Tenant")), g.orders, order, opts...)
	respond(w, placed, err)
}

func (g *Gateway) get(w http.ResponseWriter, r *http.Request) {
	order, err := api.GetOrder.Call(tenant.With(r.Context(), r.Header.Get("Tenant")), g.orders, api.GetRequest{ID: r.PathValue("id")})
	respond(w, order, err)
}

// Problem is the body of a failed request.
type Problem struct {
	Code       amqpx.Code       `json:"code"`
	Message    string           `json:"message"`
	BadRequest amqpx.BadRequest `json:"bad_request,omitzero"`
	ErrorInfo  amqpx.ErrorInfo  `json:"error_info,omitzero"`
}
