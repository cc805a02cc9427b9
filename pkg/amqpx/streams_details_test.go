package amqpx

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"rabbitmq-rpc/pkg/amqpx/internal/brokertest"
)

// TestStreamErrorsHaveDetails: details and the hint when to try again reach the client of a stream, in
// order, whether the handler fails or middleware refuses the stream.
func TestStreamErrorsHaveDetails(t *testing.T) {
	t.Parallel()
	failure := func(e *Error) *Error {
		return e.WithDetail(ErrorInfo{Reason: "FIRST"}, ErrorInfo{Reason: "SECOND"}).WithRetryAfter(2 * time.Second)
	}
	refusing := func(next Handler) Handler {
		return func(ctx context.Context, req *Request) ([]byte, error) {
			if req.Method == "refused" {
				return nil, failure(Refuse(CodeResourceExhausted, "full"))
			}
			return next(ctx, req)
		}
	}
	fails := func(context.Context, *ServerStream) error { return failure(Errorf(CodeNotFound, "no such thing")) }
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.New()
		server := startStreamServer(t, b, streamHandlers{"fails": fails, "refused": fails}, WithMiddleware(refusing))
		client := startClient(t, b)
		ready(t, server.WaitReady)
		ready(t, client.WaitReady)
		for _, c := range []struct {
			method  string
			code    Code
			outcome Outcome
		}{{"fails", CodeNotFound, Ran}, {"refused", CodeResourceExhausted, DidNotRun}} {
			s, err := client.Open(within(t, time.Minute), c.method)
			if err != nil {
				t.Fatal(err)
			}
			_, err = s.Recv()
			if CodeOf(err) != c.code || OutcomeOf(err) != c.outcome {
				t.Errorf("%s: %v (%v), want %s (%v)", c.method, err, OutcomeOf(err), c.code, c.outcome)
			}
			e := codedError(err)
			if e.RetryAfter() != 2*time.Second || len(e.Details()) != 2 {
				t.Fatalf("%s: try again after %v, %d details", c.method, e.RetryAfter(), len(e.Details()))
			}
			var info ErrorInfo
			if !Detail(err, &info) || info.Reason != "FIRST" {
				t.Errorf("%s: first detail %+v", c.method, info)
			}
		}
	})
}
