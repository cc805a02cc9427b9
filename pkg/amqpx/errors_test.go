package amqpx

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"testing"
	"testing/synctest"
	"time"
)

func TestErrorfTravelsAndStaysMatchable(t *testing.T) {
	t.Parallel()
	e := Errorf(CodeNotFound, "user %d: %w", 7, io.ErrUnexpectedEOF)
	wantSame(t, "text", e.Error(), "not_found: user 7: unexpected EOF")
	wantSame(t, "message", e.Message(), "user 7: unexpected EOF")
	wantSame(t, "code", e.Code(), CodeNotFound)
	wantSame(t, "outcome", e.Outcome(), Ran)
	wantSame(t, "remote", e.Remote(), false)
	wantIs(t, e, io.ErrUnexpectedEOF)
}

func TestErrorTextSaysWhetherItMayHaveRun(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		err  *Error
		want string
	}{
		{localError(CodeUnavailable, DidNotRun, ErrUnroutable, `no queue "q"`), `unavailable: no queue to route the request to: no queue "q" (did not run)`},
		{localError(CodeUnavailable, MayHaveRun, ErrOutcomeUnknown, ""), "unavailable: the connection was lost before the outcome was known (may have run)"},
		{localError(CodeInvalidArgument, DidNotRun, nil, "bad"), "invalid_argument: bad (did not run)"},
		{&Error{code: CodeInternal, outcome: Ran, remote: true}, "internal"},
		{&Error{code: CodeUnimplemented, message: "m", outcome: DidNotRun, remote: true}, "unimplemented: m"},
	} {
		wantSame(t, "text", c.err.Error(), c.want)
	}
}

func TestCodeOf(t *testing.T) {
	t.Parallel()
	coded := Errorf(CodeAborted, "x")
	for _, c := range []struct {
		name string
		err  error
		want Code
	}{
		{"nil", nil, ""},
		{"coded", coded, CodeAborted},
		{"wrapped", fmt.Errorf("outer: %w", coded), CodeAborted},
		{"joined", errors.Join(io.EOF, coded), CodeAborted},
		{"outermost code wins", Errorf(CodeInternal, "x: %w", coded), CodeInternal},
		{"deadline", fmt.Errorf("x: %w", context.DeadlineExceeded), CodeDeadlineExceeded},
		{"canceled", fmt.Errorf("x: %w", context.Canceled), CodeCanceled},
		{"code over context", Errorf(CodeDataLoss, "%w", context.Canceled), CodeDataLoss},
		{"any other", io.EOF, CodeUnknown},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			wantSame(t, "code", CodeOf(c.err), c.want)
		})
	}
}

func TestOutcomeOf(t *testing.T) {
	t.Parallel()
	wantSame(t, "nil", OutcomeOf(nil), Ran)
	wantSame(t, "foreign error", OutcomeOf(io.EOF), MayHaveRun)
	wantSame(t, "wrapped", OutcomeOf(fmt.Errorf("x: %w", localError(CodeUnavailable, DidNotRun, nil, ""))), DidNotRun)
	wantSame(t, "handler's error", OutcomeOf(Errorf(CodeInternal, "x")), Ran)
}

func TestContextErrorMatchesTheContext(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		e := contextError(ctx.Err(), MayHaveRun, ErrBlocked, "low on memory")
		wantSame(t, "code", e.Code(), CodeCanceled)
		wantIs(t, e, context.Canceled, ErrBlocked)

		ctx, cancel = context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		<-ctx.Done()
		e = contextError(ctx.Err(), DidNotRun, nil, "late")
		wantSame(t, "code", e.Code(), CodeDeadlineExceeded)
		wantSame(t, "outcome", e.Outcome(), DidNotRun)
		wantIs(t, e, context.DeadlineExceeded)
	})
}

func TestTextForms(t *testing.T) {
	t.Parallel()
	wantSame(t, "outcomes", fmt.Sprint(MayHaveRun, DidNotRun, Ran), "may have run did not run ran")
	wantSame(t, "states", fmt.Sprint(StateConnecting, StateReady, StateBlocked, StateReconnecting, StateDraining, StateClosed, State(99)),
		"connecting ready blocked reconnecting draining closed unknown")
	wantSame(t, "code", CodeDataLoss.String(), "data_loss")
}

func TestCodesAreAClosedSet(t *testing.T) {
	t.Parallel()
	all := []Code{
		"canceled", "unknown", "invalid_argument", "deadline_exceeded", "not_found", "already_exists",
		"permission_denied", "resource_exhausted", "failed_precondition", "aborted", "out_of_range",
		"unimplemented", "internal", "unavailable", "data_loss", "unauthenticated",
	}
	for _, c := range all {
		if !c.Valid() {
			t.Errorf("%q is not valid", c)
		}
	}
	for _, c := range []Code{"", "ok", "Internal", "internal ", "cancelled"} {
		if c.Valid() {
			t.Errorf("%q is valid", c)
		}
	}
}

// Middleware and observers call CodeOf and OutcomeOf for every call, so both must not allocate.
//
//nolint:paralleltest // counts allocations
func TestAskingAboutAResponseTakesNoMemory(t *testing.T) {
	wantSame(t, "allocations", testing.AllocsPerRun(100, func() {
		if CodeOf(nil) != "" || OutcomeOf(nil) != Ran {
			t.Error("a response is no failure")
		}
	}), 0)
}

func TestHTTPStatus(t *testing.T) {
	t.Parallel()
	for code, want := range map[Code]int{
		"": http.StatusOK, CodeUnknown: 500, CodeInternal: 500, CodeDataLoss: 500, "made up": http.StatusInternalServerError,
		CodeInvalidArgument: 400, CodeFailedPrecondition: 400, CodeOutOfRange: http.StatusBadRequest,
		CodeUnauthenticated: http.StatusUnauthorized, CodePermissionDenied: http.StatusForbidden,
		CodeNotFound: http.StatusNotFound, CodeAlreadyExists: 409, CodeAborted: http.StatusConflict,
		CodeResourceExhausted: http.StatusTooManyRequests, CodeCanceled: 499, CodeUnimplemented: http.StatusNotImplemented,
		CodeUnavailable: http.StatusServiceUnavailable, CodeDeadlineExceeded: http.StatusGatewayTimeout,
	} {
		wantSame(t, string(code), code.HTTPStatus(), want)
	}
}
