package check_test

import (
	"testing"
	"time"

	"rabbitmq-rpc/test/fault/internal/check"
	"rabbitmq-rpc/test/fault/internal/ledger"
)

// shaped returns the start of a call x of a shape.
func shaped(shape, method string) ledger.Entry {
	return with(made("x", method), func(e *ledger.Entry) { e.Shape = shape })
}

// ranIn returns an execution of the call x to all servers in a process.
func ranIn(pid int) ledger.Entry {
	return with(run("x"), func(e *ledger.Entry) { e.Method, e.PID = ledger.Everywhere, pid })
}

// answeredBy returns the end of a call to all servers with the responses of processes.
func answeredBy(pids ...int) ledger.Entry {
	return with(ended("x"), func(e *ledger.Entry) { e.Attempts, e.Servers = 0, pids })
}

func TestGoodShapesAreAccepted(t *testing.T) {
	t.Parallel()
	strict := check.Rules{IdempotentOK: true, AllOK: true, SentRuns: true}
	for shape, entries := range map[string][]ledger.Entry{
		ledger.SendShape:  {shaped(ledger.SendShape, ledger.Echo), run("x"), ended("x")},
		ledger.RetryShape: {shaped(ledger.RetryShape, ledger.Flaky), run("x"), failed("x", ledger.FlakyCode, "ran")},
		ledger.HedgeShape: {shaped(ledger.HedgeShape, ledger.Echo), run("x"), ended("x")},
		ledger.AllShape:   {shaped(ledger.AllShape, ledger.Everywhere), ranIn(1), ranIn(2), answeredBy(1, 2)},
	} {
		r := accepts(t, strict, entries...)
		s := r.Shapes[shape]
		if r.Calls != 1 || len(r.Shapes) != 1 || s == nil || s.Calls != 1 || s.OK != 1 || s.Lost != 0 {
			t.Errorf("%s: got %+v, %+v", shape, r, s)
		}
	}
	accepts(t, strict, shaped(ledger.SendShape, ledger.Once), ended("x")) // refused after a redelivery
	accepts(t, check.Rules{}, shaped(ledger.AllShape, ledger.Everywhere), ranIn(1), failed("x", "deadline_exceeded", "may have run"))
}

func TestFindsWrongShapes(t *testing.T) {
	t.Parallel()
	send, all, hedge := shaped(ledger.SendShape, ledger.Echo), shaped(ledger.AllShape, ledger.Everywhere), shaped(ledger.HedgeShape, ledger.Echo)
	keyed := func(e ledger.Entry) ledger.Entry {
		return with(e, func(e *ledger.Entry) { e.Idempotent = true })
	}
	for name, c := range map[string]struct {
		rule    check.Rule
		rules   check.Rules
		entries []ledger.Entry
	}{
		"a one-way request is lost":            {check.Lost, check.Rules{}, []ledger.Entry{send, run("x")}},
		"it never runs":                        {check.SentNeverRan, check.Rules{SentRuns: true}, []ledger.Entry{send, ended("x")}},
		"it ran":                               {check.WrongDidNotRun, check.Rules{}, []ledger.Entry{send, run("x"), failed("x", "unavailable", "did not run")}},
		"it ran twice":                         {check.RanAgain, check.Rules{}, []ledger.Entry{send, run("x"), run("x"), ended("x")}},
		"it ran twice, at most once":           {check.OnceRanTwice, check.Rules{}, []ledger.Entry{shaped(ledger.SendShape, ledger.Once), run("x"), again(), ended("x")}},
		"it failed":                            {check.Fails, check.Rules{AllOK: true}, []ledger.Entry{send, failed("x", "unavailable", "did not run")}},
		"it failed, idempotent":                {check.IdempotentFails, check.Rules{IdempotentOK: true}, []ledger.Entry{keyed(send), failed("x", "unavailable", "did not run")}},
		"a server responds twice":              {check.RespondedTwice, check.Rules{}, []ledger.Entry{all, ranIn(1), answeredBy(1, 1)}},
		"a server runs it twice":               {check.RanAgain, check.Rules{}, []ledger.Entry{all, ranIn(1), ranIn(1), answeredBy(1)}},
		"a server responds that did not run":   {check.NeverRan, check.Rules{}, []ledger.Entry{all, ranIn(1), answeredBy(1, 2)}},
		"the response of another call":         {check.Mismatched, check.Rules{}, []ledger.Entry{all, ranIn(1), with(answeredBy(1), func(e *ledger.Entry) { e.Sum = "other" })}},
		"a call to all servers ran":            {check.WrongDidNotRun, check.Rules{}, []ledger.Entry{all, ranIn(1), failed("x", "unavailable", "did not run")}},
		"the suite makes it wrongly":           {check.Misused, check.Rules{}, []ledger.Entry{all, failed("x", "invalid_argument", "did not run")}},
		"it outlived its deadline":             {check.Late, check.Rules{}, []ledger.Entry{all, ranIn(1), with(answeredBy(1), func(e *ledger.Entry) { e.At = at(time.Minute) })}},
		"a hedged call ran more often":         {check.RanAgain, check.Rules{}, []ledger.Entry{keyed(hedge), run("x"), run("x"), ended("x")}},
		"a hedged call got another's response": {check.Mismatched, check.Rules{}, []ledger.Entry{keyed(hedge), run("x"), with(ended("x"), func(e *ledger.Entry) { e.Sum = "other" })}},
		"a retried call ran":                   {check.WrongDidNotRun, check.Rules{}, []ledger.Entry{shaped(ledger.RetryShape, ledger.Echo), run("x"), failed("x", "unavailable", "did not run")}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			finds(t, c.rule, c.rules, c.entries...)
		})
	}
}

// The times of a run are those of plain calls.
func TestClockLeavesShapesOut(t *testing.T) {
	t.Parallel()
	var k check.Clock
	for _, e := range []ledger.Entry{shaped(ledger.SendShape, ledger.Echo), ended("x")} {
		k.Add(e)
	}
	if d, ok := k.RespondedAfter(at(0)); ok {
		t.Errorf("a one-way request counts as a response after %v", d)
	}
}
