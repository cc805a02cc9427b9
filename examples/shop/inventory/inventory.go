// Package inventory is the service that has the stock.
package inventory

import (
	"context"
	"strconv"
	"sync"
	"time"

	"rabbitmq-rpc/examples/shop/api"
	"rabbitmq-rpc/pkg/amqpx"
)

// Service is the stock of the shop. Here it is a map; several servers need a database in common.
type Service struct {
	mu       sync.Mutex
	left     map[string]int
	reserved map[string]api.Reservation // by idempotency key
	counting bool
}

// New returns a service with a stock.
func New(stock map[string]int) *Service {
	return &Service{left: stock, reserved: make(map[string]api.Reservation)}
}

// Count begins or ends stocktaking, during which nothing can be reserved.
func (s *Service) Count(on bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.counting = on
}

// Reserve takes items out of the stock.
func (s *Service) Reserve(ctx context.Context, r api.ReserveRequest) (api.Reservation, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	key := ""
	if req, ok := amqpx.RequestFromContext(ctx); ok {
		key = req.IdempotencyKey
	}
	if done, ok := s.reserved[key]; ok {
		return done, nil
	}
	left, sold := s.left[r.Item]
	switch {
	case s.counting:
		return api.Reservation{}, amqpx.Errorf(amqpx.CodeUnavailable, "the stock is being counted").WithRetryAfter(30 * time.Second)
	case !sold:
		return api.Reservation{}, amqpx.Errorf(amqpx.CodeNotFound, "no item %q", r.Item)
	case left < r.Count:
		return api.Reservation{}, amqpx.Errorf(amqpx.CodeFailedPrecondition, "%d of %q are left", left, r.Item).
			WithDetail(amqpx.ErrorInfo{Reason: api.OutOfStock, Domain: api.Inventory, Metadata: map[string]string{"left": strconv.Itoa(left)}})
	}
	s.left[r.Item] = left - r.Count
	done := api.Reservation{Left: left - r.Count}
	if key != "" {
		s.reserved[key] = done
	}
	return done, nil
}

// Register registers the methods of the service.
func (s *Service) Register(server *amqpx.Server) error { return api.Reserve.Handle(server, s.Reserve) }
