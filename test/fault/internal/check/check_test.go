package check_test

import (
	"testing"
	"time"

	"rabbitmq-rpc/test/fault/internal/check"
	"rabbitmq-rpc/test/fault/internal/ledger"
)

// These tests change the ledger of a good run. The checker must find exactly the change.

const client = "client-1"

func at(d time.Duration) time.Time {
	return time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC).Add(d)
}

// made, ended and run return the three entries of a good call.
func made(id, method string) ledger.Entry {
	return ledger.Entry{
		Kind: ledger.Start, Node: client, At: at(0), ID: id, Method: method,
		Deadline: at(time.Second), Sum: "sum-" + id,
	}
}

func ended(id string) ledger.Entry {
	return ledger.Entry{
		Kind: ledger.End, Node: client, At: at(time.Millisecond), ID: id, Code: ledger.OK,
		Outcome: "ran", Attempts: 1, Sum: "sum-" + id,
	}
}

func run(id string) ledger.Entry {
	return ledger.Entry{Kind: ledger.Run, Node: "server-1", At: at(time.Microsecond), ID: id, PID: 7}
}

func with(e ledger.Entry, change func(*ledger.Entry)) ledger.Entry {
	change(&e)
	return e
}

// again returns an execution of call x with the redelivered mark.
func again() ledger.Entry {
	return with(run("x"), func(e *ledger.Entry) { e.Redelivered = true })
}

func idempotent(id string) ledger.Entry {
	return with(made(id, ledger.Echo), func(e *ledger.Entry) { e.Idempotent = true })
}

// failed returns an end with an error.
func failed(id, code, outcome string) ledger.Entry {
	return with(ended(id), func(e *ledger.Entry) { e.Code, e.Outcome, e.Sum = code, outcome, "" })
}

// lastFault returns a fault of a minute.
func lastFault() ledger.Entry {
	return ledger.Entry{Kind: ledger.Fault, Name: "cut", At: at(0), Until: at(time.Minute)}
}

// judge checks a good call together with further entries.
func judge(rules check.Rules, more ...ledger.Entry) check.Result {
	var b check.Book
	for _, e := range append([]ledger.Entry{run("good"), ended("good"), made("good", ledger.Echo)}, more...) {
		b.Add(e)
	}
	return b.Check(rules)
}

// finds fails unless the rule, and no other rule, is violated once.
func finds(t *testing.T, rule check.Rule, rules check.Rules, more ...ledger.Entry) check.Result {
	t.Helper()
	r := judge(rules, more...)
	if len(r.Broken) != 1 || r.Broken[rule] != 1 || len(r.Violations) != 1 || r.Violations[0].Rule != rule {
		t.Errorf("found %v, want %q once", r.Violations, rule)
	}
	return r
}

// accepts fails on any violation.
func accepts(t *testing.T, rules check.Rules, more ...ledger.Entry) check.Result {
	t.Helper()
	r := judge(rules, more...)
	if len(r.Violations) != 0 {
		t.Errorf("found %v, want nothing", r.Violations)
	}
	return r
}

func TestGoodRunIsAccepted(t *testing.T) {
	t.Parallel()
	strict := check.Rules{IdempotentOK: true, AllOK: true, Deliveries: 5}
	r := accepts(
		t, strict,
		idempotent("i"), run("i"), ended("i"),
		made("f", ledger.Fail), run("f"),
		with(failed("f", ledger.FailCode, "ran"), func(e *ledger.Entry) { e.Sum = "sum-f" }),
		made("p", ledger.Panic), run("p"), failed("p", ledger.PanicCode, "ran"),
	)
	if r.Calls != 4 || r.OK != 4 || r.LongestStall != time.Millisecond || r.Duplicates != 0 {
		t.Errorf("got %+v, want 4 good calls of 1 ms", r)
	}
}

func TestFindsLostCall(t *testing.T) {
	t.Parallel()
	if r := finds(t, check.Lost, check.Rules{}, made("x", ledger.Echo), run("x")); r.Lost != 1 {
		t.Errorf("%d lost, want 1", r.Lost)
	}
}

func TestFindsCallSettledTwice(t *testing.T) {
	t.Parallel()
	finds(t, check.SettledTwice, check.Rules{}, made("x", ledger.Echo), run("x"), ended("x"), ended("x"))
}

func TestFindsIDUsedTwice(t *testing.T) {
	t.Parallel()
	finds(t, check.NotUnique, check.Rules{}, made("x", ledger.Echo), made("x", ledger.Echo), run("x"), ended("x"))
}

func TestFindsWhatNobodyCalled(t *testing.T) {
	t.Parallel()
	finds(t, check.NeverMade, check.Rules{}, run("x"))
	finds(t, check.NeverMade, check.Rules{}, ended("x"))
}

func TestFindsLateCall(t *testing.T) {
	t.Parallel()
	late := with(ended("x"), func(e *ledger.Entry) { e.At = at(time.Second + 251*time.Millisecond) })
	finds(t, check.Late, check.Rules{}, made("x", ledger.Echo), run("x"), late)
	finds(t, check.Late, check.Rules{Bound: 250 * time.Millisecond}, made("x", ledger.Echo), run("x"), late)
	accepts(t, check.Rules{Bound: time.Second}, made("x", ledger.Echo), run("x"), late)
}

func TestPauseOfTheClientIsExcused(t *testing.T) {
	t.Parallel()
	pause := ledger.Entry{Kind: ledger.Paused, Node: client, At: at(900 * time.Millisecond), Until: at(5 * time.Second)}
	end := func(d time.Duration) ledger.Entry {
		return with(ended("x"), func(e *ledger.Entry) { e.At = at(d) })
	}
	r := accepts(t, check.Rules{}, made("x", ledger.Echo), run("x"), end(5100*time.Millisecond), pause)
	if r.LongestStall != time.Second {
		t.Errorf("stalled %v, want 1s beside the pause", r.LongestStall)
	}
	finds(t, check.Late, check.Rules{}, made("x", ledger.Echo), run("x"), end(5251*time.Millisecond), pause)
	pause.Node = "another"
	finds(t, check.Late, check.Rules{}, made("x", ledger.Echo), run("x"), end(5100*time.Millisecond), pause)
}

func TestPauseBeforeTheDeadlineExcusesNothing(t *testing.T) {
	t.Parallel()
	pause := ledger.Entry{Kind: ledger.Paused, Node: client, At: at(0), Until: at(900 * time.Millisecond)}
	late := with(ended("x"), func(e *ledger.Entry) { e.At = at(1300 * time.Millisecond) })
	finds(t, check.Late, check.Rules{}, made("x", ledger.Echo), run("x"), late, pause)
}

func TestFindsResponseOfAnotherCall(t *testing.T) {
	t.Parallel()
	other := with(ended("x"), func(e *ledger.Entry) { e.Sum = "sum-y" })
	if r := finds(t, check.Mismatched, check.Rules{}, made("x", ledger.Echo), run("x"), other); r.Mismatched != 1 {
		t.Errorf("%d mismatched, want 1", r.Mismatched)
	}
	text := with(failed("x", ledger.FailCode, "ran"), func(e *ledger.Entry) { e.Sum = "sum-y" })
	finds(t, check.Mismatched, check.Rules{}, made("x", ledger.Fail), run("x"), text)
	finds(t, check.Mismatched, check.Rules{}, made("x", ledger.Fail), run("x"), ended("x"))
}

func TestFindsWrongDidNotRun(t *testing.T) {
	t.Parallel()
	r := finds(t, check.WrongDidNotRun, check.Rules{}, made("x", ledger.Echo), run("x"), failed("x", "unavailable", "did not run"))
	if r.WrongDidNotRun != 1 || r.Errors["unavailable, did not run"] != 1 {
		t.Errorf("got %+v, want one wrong word", r)
	}
	accepts(t, check.Rules{}, made("x", ledger.Echo), failed("x", "unavailable", "did not run"))
	accepts(t, check.Rules{}, made("x", ledger.Echo), run("x"), failed("x", "unavailable", "may have run"))
	accepts(t, check.Rules{}, made("x", ledger.Echo), failed("x", "unavailable", "may have run"))
}

func TestFindsResponseThatNobodyRan(t *testing.T) {
	t.Parallel()
	finds(t, check.NeverRan, check.Rules{}, made("x", ledger.Echo), ended("x"))
	finds(t, check.NeverRan, check.Rules{}, made("x", ledger.Panic), failed("x", ledger.PanicCode, "ran"))
}

func TestFindsSecondRunWithoutRedelivery(t *testing.T) {
	t.Parallel()
	finds(t, check.RanAgain, check.Rules{}, made("x", ledger.Echo), run("x"), run("x"), ended("x"))
	r := accepts(t, check.Rules{}, made("x", ledger.Echo), run("x"), again(), again(), ended("x"))
	if r.Duplicates != 2 {
		t.Errorf("%d duplicates, want 2", r.Duplicates)
	}
}

func TestFindsIdempotentCallRunMoreOftenThanSent(t *testing.T) {
	t.Parallel()
	twice := with(ended("x"), func(e *ledger.Entry) { e.Attempts = 2 })
	accepts(t, check.Rules{}, idempotent("x"), run("x"), run("x"), again(), twice)
	finds(t, check.RanAgain, check.Rules{}, idempotent("x"), run("x"), run("x"), run("x"), twice)
}

func TestFindsAtMostOnceRunTwice(t *testing.T) {
	t.Parallel()
	finds(t, check.OnceRanTwice, check.Rules{}, made("x", ledger.Once), run("x"), again(), ended("x"))
	once := with(made("x", ledger.Once), func(e *ledger.Entry) { e.Idempotent = true })
	finds(t, check.OnceRanTwice, check.Rules{}, once, run("x"), again(), ended("x"))
	accepts(t, check.Rules{IdempotentOK: true}, once, run("x"), failed("x", "unavailable", "may have run"))
}

func TestFindsFailedIdempotentCall(t *testing.T) {
	t.Parallel()
	entries := []ledger.Entry{idempotent("x"), failed("x", "unavailable", "did not run")}
	finds(t, check.IdempotentFails, check.Rules{IdempotentOK: true}, entries...)
	accepts(t, check.Rules{}, entries...)
	accepts(t, check.Rules{IdempotentOK: true}, made("x", ledger.Echo), entries[1])
}

func TestBrokerThatDoesNotComeBackInTimeIsExcused(t *testing.T) {
	t.Parallel()
	rules := check.Rules{IdempotentOK: true}
	entries := func(until time.Duration) []ledger.Entry {
		return []ledger.Entry{
			with(idempotent("x"), func(e *ledger.Entry) { e.Deadline = at(10 * time.Second) }),
			failed("x", "deadline_exceeded", "may have run"),
			{Kind: ledger.Outage, At: at(time.Second), Until: at(until)},
		}
	}
	finds(t, check.IdempotentFails, rules, entries(6900*time.Millisecond)...)
	accepts(t, rules, entries(7100*time.Millisecond)...)
	accepts(t, rules, entries(time.Minute)...)
}

func TestFindsFailedCallThoughNothingWasLost(t *testing.T) {
	t.Parallel()
	finds(t, check.Fails, check.Rules{AllOK: true}, made("x", ledger.Echo), failed("x", "unavailable", "did not run"))
	finds(t, check.Fails, check.Rules{AllOK: true}, made("x", ledger.Panic), run("x"), failed("x", "internal", "may have run"))
}

func TestFindsPoisonRunTooOften(t *testing.T) {
	t.Parallel()
	entries := []ledger.Entry{
		made("x", ledger.Kill), run("x"), again(), again(), failed("x", "internal", "may have run"),
	}
	accepts(t, check.Rules{Deliveries: 3}, entries...)
	finds(t, check.Poisonous, check.Rules{Deliveries: 2}, entries...)
}

func TestCallsOfKilledClientAreAbandoned(t *testing.T) {
	t.Parallel()
	killed := ledger.Entry{Kind: ledger.Killed, Node: client, At: at(500 * time.Millisecond)}
	r := accepts(t, check.Rules{}, made("x", ledger.Echo), run("x"), killed)
	if r.Abandoned != 1 || r.Lost != 0 || r.Calls != 2 {
		t.Errorf("got %+v, want one abandoned call of two", r)
	}
}

func TestFindsSettledCallOfKilledClient(t *testing.T) {
	t.Parallel()
	killed := ledger.Entry{Kind: ledger.Killed, Node: client, At: at(500 * time.Millisecond)}
	after := with(ended("x"), func(e *ledger.Entry) { e.At = at(501 * time.Millisecond) })
	finds(t, check.SettledDead, check.Rules{}, made("x", ledger.Echo), run("x"), after, killed)
}

func TestFindsCallUnderAlarmThatDoesNotEndAtItsDeadline(t *testing.T) {
	t.Parallel()
	end := func(d time.Duration) ledger.Entry {
		return with(failed("x", "deadline_exceeded", "did not run"), func(e *ledger.Entry) {
			e.At, e.Text = at(d), "the broker blocks publishing: low on memory"
		})
	}
	rules := check.Rules{Blocked: 100 * time.Millisecond}
	accepts(t, rules, made("x", ledger.Echo), end(1090*time.Millisecond))
	finds(t, check.NotAtDeadline, rules, made("x", ledger.Echo), end(1110*time.Millisecond))
	finds(t, check.NotAtDeadline, rules, made("x", ledger.Echo), end(890*time.Millisecond))
	accepts(t, check.Rules{}, made("x", ledger.Echo), end(890*time.Millisecond))
}

func TestFindsClientThatDoesNotComeBack(t *testing.T) {
	t.Parallel()
	finds(t, check.NotRecovered, check.Rules{}, lastFault())
	later := func(e ledger.Entry) ledger.Entry {
		return with(e, func(e *ledger.Entry) {
			e.At = e.At.Add(2 * time.Minute)
			e.Deadline = e.At.Add(time.Second)
		})
	}
	accepts(t, check.Rules{}, lastFault(), later(made("x", ledger.Echo)), later(run("x")), later(ended("x")))
	left := ledger.Entry{Kind: ledger.Left, Node: client, At: at(time.Second)}
	accepts(t, check.Rules{}, lastFault(), left)
}

func TestExamplesAreBoundedAndCounted(t *testing.T) {
	t.Parallel()
	var lost []ledger.Entry
	for i := range 20 {
		lost = append(lost, made(string(rune('a'+i)), ledger.Echo))
	}
	r := judge(check.Rules{}, lost...)
	if r.Broken[check.Lost] != 20 || len(r.Violations) >= 20 || r.Violations[0].String() == "" {
		t.Errorf("got %d examples of %d", len(r.Violations), r.Broken[check.Lost])
	}
}
