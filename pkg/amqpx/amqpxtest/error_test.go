package amqpxtest

import (
	"context"
	"errors"
	"testing"
	"time"

	"rabbitmq-rpc/pkg/amqpx"
)

func TestErrorsOfEveryOutcome(t *testing.T) {
	t.Parallel()
	for _, outcome := range []amqpx.Outcome{amqpx.MayHaveRun, amqpx.DidNotRun, amqpx.Ran} {
		err := error(Error(amqpx.CodeUnavailable, outcome, Message("text"), RetryAfter(time.Second), Cause(amqpx.ErrUnroutable, context.Canceled)))
		if amqpx.CodeOf(err) != amqpx.CodeUnavailable || amqpx.OutcomeOf(err) != outcome {
			t.Errorf("%v: code %q, outcome %v", err, amqpx.CodeOf(err), amqpx.OutcomeOf(err))
		}
		if !errors.Is(err, amqpx.ErrUnroutable) || !errors.Is(err, context.Canceled) {
			t.Errorf("%v matches none of its causes", err)
		}
	}
	e := Error(amqpx.CodeAborted, amqpx.Ran, Remote(), Message("text"), RetryAfter(time.Second))
	if !e.Remote() || e.Message() != "text" || e.RetryAfter() != time.Second || e.Error() != "aborted: text" {
		t.Errorf("got %v, %+v", e, e)
	}
	if local := Error(amqpx.CodeAborted, amqpx.DidNotRun); local.Remote() || local.RetryAfter() != 0 || local.Error() != "aborted (did not run)" {
		t.Errorf("got %v, %+v", local, local)
	}
	var info amqpx.ErrorInfo
	if !amqpx.Detail(e.WithDetail(amqpx.ErrorInfo{Reason: "R"}), &info) || info.Reason != "R" {
		t.Errorf("got %+v", info)
	}
}
