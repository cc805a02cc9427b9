package wire

import (
	"testing"

	amqp "github.com/rabbitmq/amqp091-go"
)

// Requests of programs that do not know the contract, and the decoded results.
func TestRequestsOfProgramsWithoutTheContract(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name          string
		d             amqp.Delivery
		defaultMethod string
		want          func(t *testing.T, r *Request)
		fails         string
	}{
		{
			name: "message_id alone is no idempotency key", d: amqp.Delivery{AppId: "b", CorrelationId: "1", MessageId: "7"},
			want: func(t *testing.T, r *Request) {
				t.Helper()
				wantSame(t, "key", r.Key, "")
			},
		},
		{
			name: "message_id with the contract's type is one", d: amqp.Delivery{AppId: "b", CorrelationId: "1", MessageId: "7", Type: TypeRequest},
			want: func(t *testing.T, r *Request) {
				t.Helper()
				wantSame(t, "key", r.Key, "7")
			},
		},
		{
			name: "message_id with rpc-timeout-ms is one",
			d:    amqp.Delivery{AppId: "b", CorrelationId: "1", MessageId: "7", Headers: amqp.Table{"rpc-timeout-ms": "1000"}},
			want: func(t *testing.T, r *Request) {
				t.Helper()
				wantSame(t, "key", r.Key, "7")
			},
		},
		{
			name: "message_id with rpc-idempotent is one",
			d:    amqp.Delivery{AppId: "b", CorrelationId: "1", MessageId: "7", Headers: amqp.Table{"rpc-idempotent": "true"}},
			want: func(t *testing.T, r *Request) {
				t.Helper()
				wantSame(t, "key", r.Key, "7")
				wantSame(t, "idempotent", r.Idempotent, true)
			},
		},
		{
			name: "a copy that a server moved has no key either",
			d:    amqp.Delivery{AppId: "b", CorrelationId: "1", MessageId: "7", Headers: amqp.Table{"rpc-deliveries": int64(1)}},
			want: func(t *testing.T, r *Request) {
				t.Helper()
				wantSame(t, "key", r.Key, "")
			},
		},
		{
			name: "without correlation_id the message_id is echoed", d: amqp.Delivery{AppId: "b", ReplyTo: "r", MessageId: "7"},
			want: func(t *testing.T, r *Request) {
				t.Helper()
				wantSame(t, "correlation id", r.ID, "7")
			},
		},
		{
			name: "without either it is empty", d: amqp.Delivery{AppId: "b", ReplyTo: "r"},
			want: func(t *testing.T, r *Request) {
				t.Helper()
				wantSame(t, "correlation id", r.ID, "")
			},
		},
		{
			name: "method by header", d: amqp.Delivery{Headers: amqp.Table{"rpc-method": "b"}}, defaultMethod: "a",
			want: func(t *testing.T, r *Request) {
				t.Helper()
				wantSame(t, "method", r.Method, "b")
			},
		},
		{
			name: "app_id comes before the header", d: amqp.Delivery{AppId: "b", Headers: amqp.Table{"rpc-method": "a"}},
			want: func(t *testing.T, r *Request) {
				t.Helper()
				wantSame(t, "method", r.Method, "b")
			},
		},
		{
			name: "default method", d: amqp.Delivery{}, defaultMethod: "a",
			want: func(t *testing.T, r *Request) {
				t.Helper()
				wantSame(t, "method", r.Method, "a")
			},
		},
		{name: "no method at all", d: amqp.Delivery{}, fails: "property app_id is empty: it names the method"},
		{
			name: "method by a header of another type", d: amqp.Delivery{Headers: amqp.Table{"rpc-method": int32(5)}},
			fails: "header rpc-method: want text, got int32 5",
		},
		{
			name: "method by a long header", d: amqp.Delivery{Headers: amqp.Table{"rpc-method": string(make([]byte, 256))}},
			fails: "method name of 256 bytes: want 1 to 255",
		},
		{
			name: "true and false as text",
			d:    amqp.Delivery{AppId: "b", Headers: amqp.Table{"rpc-idempotent": "True", "rpc-times": "true", "rpc-resent": "TRUE"}},
			want: func(t *testing.T, r *Request) {
				t.Helper()
				wantSame(t, "idempotent, times, resent", [3]bool{r.Idempotent, r.WantsTimes, r.Resent}, [3]bool{true, true, true})
				wantSame(t, "redelivered", r.Redelivered, true)
			},
		},
		{
			name: "numbers as text", d: amqp.Delivery{AppId: "b", Headers: amqp.Table{"rpc-retry": "2", "rpc-deliveries": "3"}},
			want: func(t *testing.T, r *Request) {
				t.Helper()
				wantSame(t, "retry", r.Retry, 2)
				wantSame(t, "deliveries", r.LostDeliveries, 3)
			},
		},
		{
			name: "an error shows the value", d: amqp.Delivery{AppId: "b", Headers: amqp.Table{"rpc-timeout-ms": "1.5e3"}},
			fails: `header rpc-timeout-ms: want a whole number, got "1.5e3"`,
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			var r Request
			failed := r.Decode(&c.d, c.defaultMethod)
			switch {
			case c.fails == "" && failed != nil:
				t.Fatal(failed)
			case c.fails == "":
				c.want(t, &r)
			case !isFormatError(failed) || failed.Error() != c.fails:
				t.Errorf("got %v, want %s", failed, c.fails)
			}
		})
	}
}
