package check_test

import (
	"testing"
	"time"

	"rabbitmq-rpc/test/fault/internal/check"
	"rabbitmq-rpc/test/fault/internal/items"
	"rabbitmq-rpc/test/fault/internal/ledger"
)

const planned = 10

// opened, over, streamRun and streamDone return the four entries of a good stream of a method.
func opened(id, method string) ledger.Entry {
	return ledger.Entry{Kind: ledger.StreamStart, Node: client, At: at(0), ID: id, Method: method, Items: planned}
}

func over(id, method string) ledger.Entry {
	f := &ledger.Flow{Received: planned, Whole: true, ToldReceived: planned}
	switch method {
	case ledger.Mirror:
		f.Offered, f.ToldSent, f.ToldTaken = planned, planned, planned
	case ledger.Sink:
		f.Offered, f.ToldSent, f.ToldTaken, f.Received, f.ToldReceived = planned, planned, planned, 1, 1
	}
	return ledger.Entry{Kind: ledger.StreamEnd, Node: client, At: at(time.Millisecond), ID: id, Code: ledger.OK, Outcome: "ran", Flow: f}
}

func streamRun(id, method string) ledger.Entry {
	return ledger.Entry{Kind: ledger.StreamRun, Node: "server-1", At: at(time.Microsecond), ID: id, Method: method}
}

func streamDone(id, method string) ledger.Entry {
	f := &ledger.Flow{Offered: planned, Received: planned, Whole: true}
	switch method {
	case ledger.Sink:
		f.Offered = 1
	case ledger.Source:
		f.Received, f.Whole = 0, false
	}
	return ledger.Entry{Kind: ledger.StreamDone, Node: "server-1", At: at(2 * time.Microsecond), ID: id, Method: method, Code: ledger.OK, Flow: f}
}

// broken returns the end of a stream of 10 items after 4.
func broken(id, code, outcome string) ledger.Entry {
	return with(over(id, ledger.Source), func(e *ledger.Entry) {
		e.Code, e.Outcome, e.Flow = code, outcome, &ledger.Flow{Received: 4, ToldReceived: 4}
	})
}

func flow(e ledger.Entry, change func(*ledger.Flow)) ledger.Entry {
	f := *e.Flow
	change(&f)
	e.Flow = &f
	return e
}

func TestGoodStreamsAreAccepted(t *testing.T) {
	t.Parallel()
	var all []ledger.Entry
	for _, m := range []string{ledger.Source, ledger.Sink, ledger.Mirror} {
		all = append(all, opened(m, m), streamRun(m, m), streamDone(m, m), over(m, m))
	}
	all = append(
		all,
		opened("f", ledger.FailSource), streamRun("f", ledger.FailSource), streamDone("f", ledger.Source),
		with(over("f", ledger.Source), func(e *ledger.Entry) { e.Code = ledger.FailCode }),
		with(opened("c", ledger.Source), func(e *ledger.Entry) { e.Cancels = true }),
		streamRun("c", ledger.Source), streamDone("c", ledger.Source), broken("c", ledger.CancelCode, "may have run"),
	)
	r := accepts(t, check.Rules{AllOK: true, Silence: time.Second}, all...)
	if s := r.Streams; s.Opened != 5 || s.OK != 5 || s.Items != 2*planned+(planned+1)+planned+planned+4 {
		t.Errorf("got %+v", s)
	}
}

func TestFindsLostStream(t *testing.T) {
	t.Parallel()
	if r := finds(t, check.StreamLost, check.Rules{}, opened("x", ledger.Source), streamRun("x", ledger.Source)); r.Streams.Lost != 1 {
		t.Errorf("%d lost, want 1", r.Streams.Lost)
	}
	killed := ledger.Entry{Kind: ledger.Killed, Node: client, At: at(time.Second)}
	if r := accepts(t, check.Rules{}, opened("x", ledger.Source), killed); r.Streams.Abandoned != 1 {
		t.Errorf("%d abandoned, want 1", r.Streams.Abandoned)
	}
}

func TestFindsStreamThatEndsTwiceOrThatNobodyOpened(t *testing.T) {
	t.Parallel()
	const m = ledger.Source
	finds(t, check.StreamEndedTwice, check.Rules{}, opened("x", m), streamRun("x", m), over("x", m), over("x", m))
	finds(t, check.NotUnique, check.Rules{}, opened("x", m), opened("x", m), streamRun("x", m), over("x", m))
	finds(t, check.NeverMade, check.Rules{}, streamRun("x", m))
}

func TestFindsWrongItems(t *testing.T) {
	t.Parallel()
	const m = ledger.Mirror
	for name, wrong := range map[string]items.Wrong{
		"missing": {Missing: 1}, "repeated": {Repeated: 1}, "out of order": {Misplaced: 1}, "foreign": {Foreign: 1},
	} {
		bad := func(e ledger.Entry) ledger.Entry { return flow(e, func(f *ledger.Flow) { f.Wrong = wrong }) }
		for _, pair := range [][2]ledger.Entry{{bad(over("x", m)), streamDone("x", m)}, {over("x", m), bad(streamDone("x", m))}} {
			if r := finds(t, check.WrongItems, check.Rules{}, opened("x", m), streamRun("x", m), pair[0], pair[1]); r.Streams.Wrong != wrong {
				t.Errorf("%s: %+v", name, r.Streams.Wrong)
			}
		}
	}
}

func TestFindsItemsMissingAtTheEnd(t *testing.T) {
	t.Parallel()
	short := func(f *ledger.Flow) { f.Received, f.ToldReceived = planned-1, planned-1 }
	finds(t, check.WrongItems, check.Rules{}, opened("x", ledger.Source), streamRun("x", ledger.Source), flow(over("x", ledger.Source), short))
	finds(t, check.WrongItems, check.Rules{}, opened("x", ledger.Sink), streamRun("x", ledger.Sink),
		flow(streamDone("x", ledger.Sink), func(f *ledger.Flow) { f.Received-- }),
		flow(over("x", ledger.Sink), func(f *ledger.Flow) { f.ToldTaken = planned }), streamRunAgain("x"))
}

// streamRunAgain is the second handler of an opening that was delivered again.
func streamRunAgain(id string) ledger.Entry {
	return with(streamRun(id, ledger.Sink), func(e *ledger.Entry) { e.Redelivered = true })
}

func TestFindsWrongProgress(t *testing.T) {
	t.Parallel()
	const m = ledger.Mirror
	for name, change := range map[string]func(*ledger.Flow){
		"received":             func(f *ledger.Flow) { f.ToldReceived-- },
		"more sent":            func(f *ledger.Flow) { f.ToldSent++ },
		"more taken than sent": func(f *ledger.Flow) { f.ToldSent = f.ToldTaken - 1 },
		"not all taken":        func(f *ledger.Flow) { f.ToldTaken-- },
	} {
		if r := finds(t, check.WrongProgress, check.Rules{}, opened("x", m), streamRun("x", m), flow(over("x", m), change)); r.Streams.WrongProgress != 1 {
			t.Errorf("%s: %+v", name, r.Streams)
		}
	}
	lost := func(taken int) ledger.Entry {
		return with(broken("x", "unavailable", "may have run"), func(e *ledger.Entry) {
			e.Flow = &ledger.Flow{Offered: planned, ToldSent: planned, ToldTaken: taken}
		})
	}
	three := flow(streamDone("x", m), func(f *ledger.Flow) { f.Received, f.Whole = 3, false })
	accepts(t, check.Rules{}, opened("x", m), streamRun("x", m), lost(3), three)
	finds(t, check.WrongProgress, check.Rules{}, opened("x", m), streamRun("x", m), lost(4), three)
}

func TestFindsSilentOrLateStream(t *testing.T) {
	t.Parallel()
	const m = ledger.Source
	silent := flow(over("x", m), func(f *ledger.Flow) { f.Silence, f.SilentAt = 5*time.Second, at(time.Second) })
	rules := check.Rules{Silence: 3 * time.Second}
	finds(t, check.StreamSilent, rules, opened("x", m), streamRun("x", m), silent)
	pause := ledger.Entry{Kind: ledger.Paused, Node: client, At: at(0), Until: at(3 * time.Second)}
	r := accepts(t, rules, opened("x", m), streamRun("x", m), silent, pause)
	if r.Streams.LongestSilence != 3*time.Second {
		t.Errorf("silent for %v beside the pause, want 3 s", r.Streams.LongestSilence)
	}
	accepts(t, rules, opened("x", m), streamRun("x", m), silent, ledger.Entry{Kind: ledger.Outage, At: at(2 * time.Second), Until: at(3 * time.Second)})
	limited := with(opened("x", m), func(e *ledger.Entry) { e.Deadline = at(time.Second) })
	late := with(over("x", m), func(e *ledger.Entry) { e.At = at(2 * time.Second) })
	finds(t, check.StreamLate, check.Rules{}, limited, streamRun("x", m), late)
}

func TestFindsStreamThatRanAgain(t *testing.T) {
	t.Parallel()
	const m = ledger.Source
	finds(t, check.RanAgain, check.Rules{}, opened("x", m), streamRun("x", m), streamRun("x", m), over("x", m))
	accepts(t, check.Rules{}, opened("x", m), streamRun("x", m), streamRunAgain("x"), over("x", m))
	finds(t, check.OnceRanTwice, check.Rules{}, opened("x", ledger.OnceSource), streamRun("x", m), streamRunAgain("x"), over("x", m))
}

func TestFindsStreamWithAWrongResult(t *testing.T) {
	t.Parallel()
	const m = ledger.Source
	none := with(broken("x", "unavailable", "did not run"), func(e *ledger.Entry) { e.Flow = new(ledger.Flow) })
	finds(t, check.WrongDidNotRun, check.Rules{}, opened("x", m), streamRun("x", m), none)
	accepts(t, check.Rules{}, opened("x", m), none)
	finds(t, check.NeverRan, check.Rules{}, opened("x", m), over("x", m))
	finds(t, check.Fails, check.Rules{AllOK: true}, opened("x", m), none)
}

func TestFindsClientWithoutStreamsAfterTheFaults(t *testing.T) {
	t.Parallel()
	const m = ledger.Source
	later := func(e ledger.Entry) ledger.Entry {
		return with(e, func(e *ledger.Entry) { e.At, e.Deadline = e.At.Add(2*time.Minute), at(3*time.Minute) })
	}
	calls := []ledger.Entry{lastFault(), later(made("y", ledger.Echo)), later(run("y")), later(ended("y"))}
	finds(t, check.NotRecovered, check.Rules{}, append(calls, opened("x", m), streamRun("x", m), over("x", m))...)
	accepts(t, check.Rules{}, append(calls, later(opened("x", m)), later(streamRun("x", m)), later(over("x", m)))...)
}
