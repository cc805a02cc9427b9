package amqpx

import (
	"context"
	"errors"
	"fmt"
	"testing"

	amqp "github.com/rabbitmq/amqp091-go"
)

// The texts of one fault differ from attempt to attempt, by a local port or by which
// side of the link noticed first; the log tells it once all the same.
func TestKindOfFaultLeavesOutTheCause(t *testing.T) {
	t.Parallel()
	a, b := parseTarget("amqp://a"), parseTarget("amqp://b")
	refused := func(port int) error { return fmt.Errorf("read 127.0.0.1:%d: connection refused", port) }
	one := errors.Join(classify(a, refused(1)), classify(b, amqp.ErrClosed))
	again := errors.Join(classify(a, refused(2)), classify(b, &amqp.Error{Code: amqp.FrameError, Reason: "EOF"}))
	if kindOfFault(one) != kindOfFault(again) {
		t.Errorf("%q is not %q", kindOfFault(one), kindOfFault(again))
	}
	if kindOfFault(one) == kindOfFault(classify(a, amqp.ErrCredentials)) {
		t.Error("a wrong password is taken for a refused connection")
	}
}

func TestNilLoggerLogsNothing(t *testing.T) {
	t.Parallel()
	if _, err := NewServer(testURL, WithLogger(nil)); err != nil {
		t.Error(err)
	}
}

func TestPortOutOfRangeIsRefused(t *testing.T) {
	t.Parallel()
	for _, port := range []string{"0", "65536"} {
		if _, err := NewServer("amqp://host:" + port); err == nil {
			t.Errorf("port %s is taken", port)
		}
	}
}

func TestRemoteDeadlineMatchesTheContexts(t *testing.T) {
	t.Parallel()
	_, _, err := decodeAnswer(&amqp.Delivery{Headers: amqp.Table{headerCode: string(CodeDeadlineExceeded)}})
	if !errors.Is(err, context.DeadlineExceeded) || !err.Remote() {
		t.Errorf("got %v", err)
	}
}
