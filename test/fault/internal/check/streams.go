package check

import (
	"maps"
	"slices"
	"time"

	"rabbitmq-rpc/test/fault/internal/items"
	"rabbitmq-rpc/test/fault/internal/ledger"
)

// stream combines all ledger entries of one stream.
type stream struct {
	node, method          string
	items                 int
	cancels               bool
	made, deadline, ended time.Time
	starts, ends          int

	code, outcome, text string
	flow                ledger.Flow // of the client

	// runs counts the handlers, fresh those whose opening was not marked as redelivered, dones
	// those that ended; served holds their flows.
	runs, fresh, dones int
	served             []ledger.Flow
}

// Streams is the judgement of the streams of a run.
type Streams struct {
	// Opened is the number of streams. OK counts those with the intended end, Errors the other
	// ends by code and outcome, Abandoned the streams of clients that were killed.
	Opened    int            `json:"opened"`
	OK        int            `json:"ok"`
	Errors    map[string]int `json:"errors,omitempty"`
	Abandoned int            `json:"abandoned"`
	// Lost counts the streams that never ended.
	Lost int `json:"lost"`
	// Items is the number of items that programs received, Wrong what was wrong with them.
	Items int         `json:"items"`
	Wrong items.Wrong `json:"wrong,omitzero"`
	// WrongProgress counts the streams that told a wrong progress.
	WrongProgress int `json:"wrong_progress"`
	// LongestSilence is the longest time without progress, without pauses of the client and
	// absences of the broker.
	LongestSilence time.Duration `json:"longest_silence_ns"`
}

func (b *Book) stream(id string) *stream {
	if b.streams == nil {
		b.streams = make(map[string]*stream)
	}
	s := b.streams[id]
	if s == nil {
		s = new(stream)
		b.streams[id] = s
	}
	return s
}

// addStream adds an entry of a stream.
func (b *Book) addStream(e ledger.Entry) {
	s := b.stream(e.ID)
	switch e.Kind { //nolint:exhaustive // the kinds of streams.
	case ledger.StreamStart:
		s.starts++
		s.node, s.method, s.items, s.cancels, s.made, s.deadline = e.Node, e.Method, e.Items, e.Cancels, e.At, e.Deadline
	case ledger.StreamEnd:
		s.ends++
		s.ended, s.code, s.outcome, s.text = e.At, e.Code, e.Outcome, e.Text
		if e.Flow != nil {
			s.flow = *e.Flow
		}
	case ledger.StreamRun:
		s.runs++
		if !e.Redelivered {
			s.fresh++
		}
	case ledger.StreamDone:
		s.dones++
		if e.Flow != nil {
			s.served = append(s.served, *e.Flow)
		}
	}
}

// well reports whether the stream ended as intended.
func (s *stream) well() bool {
	switch {
	case s.ends == 0:
		return false
	case s.cancels && s.code == ledger.CancelCode:
		return true
	case s.method == ledger.FailSource:
		return s.code == ledger.FailCode && s.outcome == ran
	default:
		return s.code == ledger.OK
	}
}

// whole reports whether the client got an end behind all items of the handler.
func (s *stream) whole() bool { return s.well() && s.code != ledger.CancelCode }

// up and down are the numbers of items of a whole stream.
func (s *stream) up() int {
	if s.method == ledger.Sink || s.method == ledger.Mirror {
		return s.items
	}
	return 0
}

func (s *stream) down() int {
	if s.method == ledger.Sink {
		return 1
	}
	return s.items
}

// checkStreams judges the streams, and reports which clients had a whole stream after the last fault.
func (b *Book) checkStreams(r *Result, rules Rules) (recovered map[string]bool) {
	recovered = make(map[string]bool)
	r.Streams.Errors = make(map[string]int)
	for _, id := range slices.Sorted(maps.Keys(b.streams)) {
		s := b.streams[id]
		if s.starts == 0 {
			r.violate(NeverMade, id, "%d streams ended, %d ran", s.ends, s.runs)
			continue
		}
		if s.starts > 1 {
			r.violate(NotUnique, id, "%d streams", s.starts)
		}
		r.Streams.Opened++
		b.streamEnded(r, id, s, rules)
		streamRan(r, id, s)
		streamItems(r, id, s)
		if s.ends > 0 {
			streamResult(r, id, s, rules)
			streamProgress(r, id, s)
		}
		recovered[s.node] = recovered[s.node] || s.whole() && s.made.After(b.quiet)
	}
	return recovered
}

// streamEnded checks for exactly one end of the stream, in time, and without a long silence.
func (b *Book) streamEnded(r *Result, id string, s *stream, rules Rules) {
	_, dead := b.killed[s.node]
	switch {
	case s.ends == 0 && dead:
		r.Streams.Abandoned++
		return
	case s.ends == 0:
		r.Streams.Lost++
		r.violate(StreamLost, id, "%s of %s, made at %s", s.method, s.node, s.made.Format(time.RFC3339Nano))
		return
	case s.ends > 1:
		r.violate(StreamEndedTwice, id, "%d times", s.ends)
	}
	if !s.deadline.IsZero() {
		if latest := b.latest(s.node, s.deadline, rules.Bound); s.ended.After(latest) {
			r.violate(StreamLate, id, "%v after its deadline, %s: %s", s.ended.Sub(s.deadline), s.code, s.text)
		}
	}
	silence := s.flow.Silence - b.excused(s.node, s.flow.SilentAt, s.flow.SilentAt.Add(s.flow.Silence))
	r.Streams.LongestSilence = max(r.Streams.LongestSilence, silence)
	if rules.Silence > 0 && silence > rules.Silence {
		r.violate(StreamSilent, id, "%v from %s, %s: %s", silence, s.flow.SilentAt.Format(time.RFC3339Nano), s.code, s.text)
	}
}

// excused returns how long, within a time, the process was stopped or there was no broker.
func (b *Book) excused(node string, from, until time.Time) time.Duration {
	all := slices.Clone(b.paused[node])
	for _, o := range b.outages {
		all = append(all, span{o.from, o.until.Add(comeback)})
	}
	slices.SortFunc(all, func(x, y span) int { return x.from.Compare(y.from) })
	var sum time.Duration
	for _, p := range all {
		if p.from.Before(from) {
			p.from = from
		}
		if p.until.After(until) {
			p.until = until
		}
		if d := p.until.Sub(p.from); d > 0 {
			sum += d
			from = p.until
		}
	}
	return sum
}

// streamRan checks the number of handlers.
func streamRan(r *Result, id string, s *stream) {
	switch {
	case s.method == ledger.OnceSource && s.runs > 1:
		r.violate(OnceRanTwice, id, "%d times", s.runs)
	case s.fresh > 1:
		r.violate(RanAgain, id, "%d times, %d of them fresh", s.runs, s.fresh)
	}
}

// streamItems checks that no side got a gap, or an item twice, out of order, or of others.
func streamItems(r *Result, id string, s *stream) {
	wrong := s.flow.Wrong
	received := s.flow.Received
	for i := range s.served {
		f := &s.served[i]
		received += f.Received
		own := f.Wrong
		if f.Whole {
			own.Missing += max(s.up()-f.Received, 0)
		}
		wrong = wrong.Plus(own)
	}
	if s.whole() {
		wrong.Missing += max(s.down()-s.flow.Received, 0)
		wrong.Repeated += max(s.flow.Received-s.down(), 0)
	}
	r.Streams.Items += received
	r.Streams.Wrong = r.Streams.Wrong.Plus(wrong)
	if wrong != (items.Wrong{}) {
		r.violate(WrongItems, id, "%+v of %s, %s", wrong, s.method, s.code)
	}
}

// streamResult checks the truth of the stream's end.
func streamResult(r *Result, id string, s *stream, rules Rules) {
	if s.well() {
		r.Streams.OK++
	} else {
		r.Streams.Errors[s.code+", "+s.outcome]++
	}
	switch {
	case s.code != ledger.OK && s.outcome == didNotRun && s.runs > 0:
		r.WrongDidNotRun++
		r.violate(WrongDidNotRun, id, "a stream ran %d times: %s: %s", s.runs, s.code, s.text)
	case (s.code == ledger.OK || s.outcome == ran) && s.runs == 0:
		r.violate(NeverRan, id, "stream: %s: %s", s.code, s.text)
	case rules.AllOK && !s.well() && (s.deadline.IsZero() || s.ended.Before(s.deadline)):
		r.violate(Fails, id, "stream: %s: %s", s.code, s.text)
	}
}

// streamProgress checks what the library told of the progress against what the programs did.
func streamProgress(r *Result, id string, s *stream) {
	f := &s.flow
	right := f.ToldReceived == f.Received && f.ToldSent <= f.Offered && f.ToldTaken <= f.ToldSent
	if s.whole() {
		right = right && f.ToldTaken == s.up()
	}
	if s.runs == 1 && s.dones == 1 {
		served := &s.served[0]
		right = right && f.ToldTaken <= served.Received && f.Received <= served.Offered && served.ToldTaken <= f.Received
	}
	if !right {
		r.Streams.WrongProgress++
		r.violate(WrongProgress, id, "%s, %s: client %+v, handlers %+v", s.method, s.code, *f, s.served)
	}
}
