// Package api has the types and the methods of the services of the shop. Servers and callers share
// it.
package api

import (
	"time"

	"rabbitmq-rpc/pkg/amqpx"
)

// Queues of the services.
const (
	Orders    = "shop.orders"
	Inventory = "shop.inventory"
)

// CreateRequest orders an item.
type CreateRequest struct {
	Item  string `json:"item"`
	Count int    `json:"count"`
}

// Check reports every wrong field.
func (r CreateRequest) Check() error {
	var wrong []amqpx.FieldViolation
	if r.Item == "" {
		wrong = append(wrong, amqpx.FieldViolation{Field: "item", Description: "is empty"})
	}
	if r.Count < 1 || r.Count > 100 {
		wrong = append(wrong, amqpx.FieldViolation{Field: "count", Description: "must be 1 to 100"})
	}
	if len(wrong) == 0 {
		return nil
	}
	return amqpx.Errorf(amqpx.CodeInvalidArgument, "the order is not valid").WithDetail(amqpx.BadRequest{FieldViolations: wrong})
}

// Order is an order that was placed.
type Order struct {
	ID    string `json:"id"`
	Item  string `json:"item"`
	Count int    `json:"count"`
}

// GetRequest asks for an order.
type GetRequest struct {
	ID string `json:"id"`
}

// ReserveRequest takes items out of the stock.
type ReserveRequest struct {
	Item  string `json:"item"`
	Count int    `json:"count"`
}

// Reservation says how many items are left.
type Reservation struct {
	Left int `json:"left"`
}

// OutOfStock is the reason in the ErrorInfo of a reservation that the stock is too small for.
const OutOfStock = "OUT_OF_STOCK"

// The methods.
//
//nolint:gochecknoglobals // methods do not change.
var (
	// CreateOrder places an order. Calls with the same idempotency key place it once.
	CreateOrder = amqpx.NewMethod[CreateRequest, Order]("orders.create", amqpx.JSON(),
		amqpx.CallTimeout(5*time.Second), amqpx.Validate(CreateRequest.Check))
	// GetOrder finds an order.
	GetOrder = amqpx.NewMethod[GetRequest, Order]("orders.get", amqpx.JSON(), amqpx.CallTimeout(time.Second), amqpx.Idempotent())
	// Reserve takes items out of the stock. Calls with the same idempotency key take them once.
	Reserve = amqpx.NewMethod[ReserveRequest, Reservation]("inventory.reserve", amqpx.JSON(), amqpx.CallTimeout(2*time.Second))
)
