// Package orders is the service that places orders. It reserves their items in the inventory.
package orders

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"sync"

	"rabbitmq-rpc/examples/shop/api"
	"rabbitmq-rpc/examples/shop/tenant"
	"rabbitmq-rpc/pkg/amqpx"
)

// Service is the orders of the shop. Here they are a map; several servers need a database in common.
type Service struct {
	inventory amqpx.Caller

	mu     sync.Mutex
	orders map[string]map[string]api.Order // by tenant and id
}

// New returns a service that reserves items in an inventory.
func New(inventory amqpx.Caller) *Service {
	return &Service{inventory: inventory, orders: make(map[string]map[string]api.Order)}
}

// Create places an order. The id of an order with an idempotency key is the key, so a second call
// with the key places no second order, at this server or at another.
func (s *Service) Create(ctx context.Context, r api.CreateRequest) (api.Order, error) {
	owner := tenant.Of(ctx)
	if owner == "" {
		return api.Order{}, amqpx.Errorf(amqpx.CodeUnauthenticated, "no tenant")
	}
	order := api.Order{ID: rand.Text(), Item: r.Item, Count: r.Count}
	if req, ok := amqpx.RequestFromContext(ctx); ok && req.IdempotencyKey != "" {
		order.ID = req.IdempotencyKey
	}
	_, err := api.Reserve.Call(ctx, s.inventory, api.ReserveRequest(r),
		amqpx.WithIdempotencyKey(fmt.Sprintf("%q %s", owner, order.ID)))
	switch amqpx.CodeOf(err) {
	case "":
	case amqpx.CodeNotFound, amqpx.CodeFailedPrecondition: // the customer's concern, with its details
		return api.Order{}, err
	default: // not the customer's concern: the text stays in the log
		return api.Order{}, amqpx.Hide(err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.orders[owner] == nil {
		s.orders[owner] = make(map[string]api.Order)
	}
	s.orders[owner][order.ID] = order
	return order, nil
}

// Get finds an order of the tenant.
func (s *Service) Get(ctx context.Context, r api.GetRequest) (api.Order, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	order, ok := s.orders[tenant.Of(ctx)][r.ID]
	if !ok {
		return api.Order{}, amqpx.Errorf(amqpx.CodeNotFound, "no order %q", r.ID)
	}
	return order, nil
}

// Register registers the methods of the service.
func (s *Service) Register(server *amqpx.Server) error {
	return errors.Join(api.CreateOrder.Handle(server, s.Create), api.GetOrder.Handle(server, s.Get))
}
