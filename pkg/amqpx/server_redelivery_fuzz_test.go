package amqpx

import (
	"maps"
	"reflect"
	"strconv"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"rabbitmq-rpc/pkg/amqpx/internal/wire"
	"rabbitmq-rpc/pkg/amqpx/internal/wire/wiretest"
)

// FuzzCopy republishes requests of any sender: the copy must be valid, and must be the same
// request.
func FuzzCopy(f *testing.F) {
	f.Add("b", "id", "1000", []byte("request"), int64(time.Millisecond), []byte{1, 1, 'x', 12, 1, 'y', 'z'})
	f.Add("", "", "-1", []byte{}, int64(0), []byte{1, 2, 'C', 'C', 17, 1, 12, 1, 'q'})
	f.Fuzz(func(t *testing.T, method, id, expiration string, body []byte, held int64, raw []byte) {
		s := wiretest.Seed(raw)
		d := amqp.Delivery{AppId: method, CorrelationId: id, Expiration: expiration, Body: body, Headers: s.Table(0)}
		if n := s.Byte(); n%2 == 1 {
			d.Headers[wire.HeaderTimeout] = s.Value(0)
			d.Type = wiretest.TypeOf(n >> 1)
		}
		before := maps.Clone(d.Headers)
		req := &inboundRequest{delivery: &delivery{message: d, arrived: time.Now().Add(-time.Duration(max(held, 0)))}, in: decoded(&d)}
		msg, err := clonePublishing(req)
		if !reflect.DeepEqual(before, d.Headers) && !hasNaN(before) {
			t.Errorf("the original changed from %v to %v", before, d.Headers)
		}
		if err != nil {
			return
		}
		if err := wire.CheckTable(msg.Headers); err != nil {
			t.Errorf("cannot be sent: %v", err)
		}
		d.Headers, d.Expiration = msg.Headers, msg.Expiration
		again := decoded(&d)
		if again.Method != req.in.Method || again.ID != req.in.ID || string(again.Body) != string(req.in.Body) ||
			again.Idempotent != req.in.Idempotent || again.Budget > max(req.in.Budget, time.Millisecond) {
			t.Errorf("%+v became %+v", req.in, again)
		}
		if n, err := strconv.ParseInt(msg.Expiration, 10, 64); msg.Expiration != "" && (err != nil || n < 1) {
			t.Errorf("expiration %q of %q", msg.Expiration, expiration)
		}
	})
}

// hasNaN reports whether a table contains NaN, which differs from itself.
func hasNaN(t amqp.Table) bool { return !reflect.DeepEqual(t, maps.Clone(t)) }
