package check_test

import (
	"fmt"
	"testing"
	"time"

	"rabbitmq-rpc/test/fault/internal/check"
	"rabbitmq-rpc/test/fault/internal/ledger"
)

// lease is the lease of the claims in these ledgers.
const lease = 2 * time.Second

// keyed returns the start of a call with the key k.
func keyed(id string) ledger.Entry {
	return with(shaped(ledger.KeyShape, ledger.Shared), func(e *ledger.Entry) {
		e.ID, e.Idempotent, e.Key, e.Deadline = id, true, "k", at(time.Minute)
	})
}

// done returns the two entries of an execution for a call with the key k, in a process, from a time
// on for 10 ms. Each server has one process.
func done(id string, pid int, from time.Duration) []ledger.Entry {
	start := with(run(id), func(e *ledger.Entry) {
		e.Node, e.At, e.Key, e.PID = fmt.Sprintf("server-%d", pid), at(from), "k", pid
	})
	end := with(start, func(e *ledger.Entry) {
		e.Kind, e.Until, e.User, e.Sum = ledger.Done, at(from+10*time.Millisecond), "guest", responseIn(pid)
	})
	return []ledger.Entry{start, end}
}

// responseIn is the response of the execution in a process.
func responseIn(pid int) string { return string(rune('a' + pid)) }

// got returns the end of a call with the key k, with the response of the execution in a process.
func got(id string, pid int) ledger.Entry {
	return with(ended(id), func(e *ledger.Entry) { e.Sum, e.Server = responseIn(pid), responseIn(pid) })
}

// entriesOf joins entries and lists of entries.
func entriesOf(all ...any) (list []ledger.Entry) {
	for _, e := range all {
		switch e := e.(type) {
		case ledger.Entry:
			list = append(list, e)
		case []ledger.Entry:
			list = append(list, e...)
		}
	}
	return list
}

// keyRules are the rules for ledgers with keys.
func keyRules() check.Rules { return check.Rules{IdempotentOK: true, AllOK: true, Lease: lease} }

func TestKeyThatRanOnceIsAccepted(t *testing.T) {
	t.Parallel()
	other := with(got("y", 1), func(e *ledger.Entry) { e.Server = "another" })
	r := accepts(t, keyRules(), entriesOf(keyed("x"), keyed("y"), done("x", 1, 0), got("x", 1), other)...)
	if want := (check.Keys{Keys: 1, Several: 1, Started: 1, Ended: 1}); r.Keys != want {
		t.Errorf("got %+v, want %+v", r.Keys, want)
	}
	if s := r.Shapes[ledger.KeyShape]; r.Calls != 1 || s == nil || s.Calls != 2 || s.OK != 2 || s.Duplicates != 0 {
		t.Errorf("got %+v, %+v, want two calls with one execution", r, s)
	}
	// An execution that fails, as with its server, leaves the key to the next one.
	r = accepts(t, keyRules(), entriesOf(keyed("x"), done("x", 1, 0)[0], done("x", 2, time.Second)[0], done("x", 2, time.Second)[1],
		with(got("x", 2), func(e *ledger.Entry) { e.Attempts = 2 }))...)
	if s := r.Shapes[ledger.KeyShape]; r.Keys.Started != 2 || r.Keys.Ended != 1 || s.Duplicates != 1 {
		t.Errorf("got %+v, %+v, want one execution of two", r.Keys, s)
	}
}

func TestFindsKeyThatRanTwice(t *testing.T) {
	t.Parallel()
	both := entriesOf(keyed("x"), keyed("y"), done("x", 1, 0), done("y", 2, time.Second))
	finds(t, check.KeyRanTwice, keyRules(), append(both, got("x", 1), got("y", 1))...)
	r := judge(keyRules(), append(both, got("x", 1), got("y", 2))...)
	if len(r.Broken) != 2 || r.Broken[check.KeyRanTwice] != 1 || r.Broken[check.KeyResponses] != 1 {
		t.Errorf("found %v, want two executions and two responses", r.Violations)
	}
}

// A second execution is accepted where a claim does not hold; a third is not.
func TestKeyWhoseClaimIsLostMayRunTwice(t *testing.T) {
	t.Parallel()
	both := entriesOf(keyed("x"), keyed("y"), done("x", 1, 0), done("y", 2, 3*time.Second), got("x", 1), got("y", 2))
	dies := func(pid int, d time.Duration) ledger.Entry {
		return ledger.Entry{Kind: ledger.Dead, Node: "server-1", PID: pid, At: at(d)}
	}
	stops := func(node string, from, until time.Duration) ledger.Entry {
		return ledger.Entry{Kind: ledger.Paused, Node: node, At: at(from), Until: at(until)}
	}
	for name, c := range map[string]struct {
		lost  bool
		entry ledger.Entry
	}{
		"the server dies before the response is stored": {true, dies(1, 20*time.Millisecond)},
		"the server dies long after":                    {false, dies(1, 2*time.Second)},
		"another server dies":                           {false, dies(3, 20*time.Millisecond)},
		"the server stops for longer than the lease":    {true, stops("server-1", 5*time.Millisecond, 3*time.Second)},
		"the server stops for less":                     {false, stops("server-1", 5*time.Millisecond, time.Second)},
		"another server stops":                          {false, stops("server-3", 5*time.Millisecond, 3*time.Second)},
		"the server stops at another time":              {false, stops("server-1", time.Minute, 2*time.Minute)},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := judge(keyRules(), entriesOf(both, c.entry)...)
			if twice := r.Broken[check.KeyRanTwice] > 0; twice == c.lost || (r.Keys.Unclaimed > 0) != c.lost {
				t.Errorf("found %v, %+v, want a lost claim: %v", r.Violations, r.Keys, c.lost)
			}
		})
	}
	third := entriesOf(both, dies(1, 20*time.Millisecond), keyed("z"), done("z", 3, 4*time.Second), got("z", 2))
	finds(t, check.KeyRanTwice, keyRules(), third...)
}

// The key of a caller whose user is unknown belongs to the caller's reply_to.
func TestAnonymousKeyIsNotShared(t *testing.T) {
	t.Parallel()
	anonymous := done("x", 1, 0)
	anonymous[1].User = ""
	r := accepts(t, keyRules(), entriesOf(keyed("x"), keyed("y"), anonymous, done("y", 2, time.Second), got("x", 1), got("y", 2))...)
	if r.Keys.Anonymous != 1 || r.Keys.Ended != 2 {
		t.Errorf("got %+v, want an anonymous execution of two", r.Keys)
	}
}

func TestFindsWrongCallsWithKeys(t *testing.T) {
	t.Parallel()
	refused := failed("x", "unavailable", "did not run")
	for name, c := range map[string]struct {
		rule    check.Rule
		rules   check.Rules
		entries []ledger.Entry
	}{
		"the response of no execution": {check.Mismatched, keyRules(), entriesOf(keyed("x"), done("x", 1, 0), got("x", 2))},
		"a response without execution": {check.NeverRan, keyRules(), entriesOf(keyed("x"), done("x", 1, 0)[0], got("x", 1))},
		"a call is lost":               {check.Lost, keyRules(), entriesOf(keyed("x"), done("x", 1, 0))},
		"it failed though it ran":      {check.WrongDidNotRun, check.Rules{}, entriesOf(keyed("x"), done("x", 1, 0), refused)},
		"it failed":                    {check.Fails, check.Rules{AllOK: true}, entriesOf(keyed("x"), refused)},
		"it failed though it may not":  {check.IdempotentFails, check.Rules{IdempotentOK: true}, entriesOf(keyed("x"), refused)},
		"it ran more often than sent":  {check.RanAgain, check.Rules{}, entriesOf(keyed("x"), done("x", 1, 0)[0], done("x", 2, time.Second), got("x", 2))},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			finds(t, c.rule, c.rules, c.entries...)
		})
	}
	held := with(keyed("x"), func(e *ledger.Entry) { e.Method = ledger.Held })
	accepts(t, check.Rules{IdempotentOK: true}, held, refused) // the delivery limit
}
