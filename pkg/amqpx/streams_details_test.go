package amqpx

import (
	"context"
	"testing"
	"testing/synctest"
	"time"
)

// Details and the hint of an error reach the client of a stream, in order.
func TestDetailsOfAStream(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := startStreams(t, streamHandlers{"fails": func(context.Context, *ServerStream) error {
			return Errorf(CodeAborted, "no").WithDetail(AnyDetail{TypeURL: "a/first", Value: []byte("1")}, AnyDetail{TypeURL: "a/second"}).WithRetryAfter(time.Second)
		}})
		_, err := collect(t, r.client, within(t, time.Minute), "fails", "")
		wantFailed(t, err, CodeAborted, Ran)
		details := codedError(err).Details()
		if len(details) != 2 || details[0].TypeURL != "a/first" || string(details[0].Value) != "1" || details[1].TypeURL != "a/second" {
			t.Errorf("details %v", details)
		}
		wantSame(t, "hint", codedError(err).RetryAfter(), time.Second)
	})
}
