package amqpxtest

import (
	"context"
	"errors"
	"fmt"
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

// TestErrorsOfStreams: an error tells how far its stream came, also wrapped and with details; of several
// options the last counts.
func TestErrorsOfStreams(t *testing.T) {
	t.Parallel()
	want := amqpx.Progress{Sent: 7, Taken: 5, Received: 3}
	option := Progress(want)
	lost := Error(amqpx.CodeUnavailable, amqpx.MayHaveRun, option)
	if got := amqpx.ProgressOf(lost); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if got := amqpx.ProgressOf(fmt.Errorf("orders: %w", lost.WithDetail(amqpx.ErrorInfo{Reason: "R"}))); got != want {
		t.Errorf("wrapped: got %+v, want %+v", got, want)
	}
	if got := amqpx.ProgressOf(Error(amqpx.CodeUnavailable, amqpx.MayHaveRun, option, Progress(amqpx.Progress{Sent: 1}))); got != (amqpx.Progress{Sent: 1}) {
		t.Errorf("the last option: got %+v", got)
	}
	if got := amqpx.ProgressOf(Error(amqpx.CodeUnavailable, amqpx.MayHaveRun)); got != (amqpx.Progress{}) {
		t.Errorf("without the option: got %+v", got)
	}
}
