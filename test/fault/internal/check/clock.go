package check

import (
	"slices"
	"sort"
	"time"

	"rabbitmq-rpc/test/fault/internal/ledger"
)

// Clock collects the entries of a run that tell how soon something followed. The
// zero value is ready to use.
type Clock struct {
	answers []time.Time
	sorted  bool
	states  map[string][]ledger.Entry
	made    map[string]time.Time // by the id of the call
	served  map[string][]served  // by client
}

// served is a call that was answered.
type served struct{ made, answered time.Time }

// Add takes an entry.
func (k *Clock) Add(e ledger.Entry) {
	switch {
	case e.Kind == ledger.Start:
		if k.made == nil {
			k.made, k.served = make(map[string]time.Time), make(map[string][]served)
		}
		k.made[e.ID] = e.At
	case e.Kind == ledger.End && e.Code == ledger.OK:
		k.answers, k.sorted = append(k.answers, e.At), false
		if made, ok := k.made[e.ID]; ok { // the same file says so before
			k.served[e.Node] = append(k.served[e.Node], served{made, e.At})
		}
	case e.Kind == ledger.Status:
		if k.states == nil {
			k.states = make(map[string][]ledger.Entry)
		}
		k.states[e.Node] = append(k.states[e.Node], e)
	}
}

// AnsweredAfter is how long after a moment the first call was answered.
func (k *Clock) AnsweredAfter(at time.Time) (time.Duration, bool) {
	if !k.sorted {
		slices.SortFunc(k.answers, time.Time.Compare)
		k.sorted = true
	}
	i := sort.Search(len(k.answers), func(i int) bool { return !k.answers[i].Before(at) })
	if i == len(k.answers) {
		return 0, false
	}
	return k.answers[i].Sub(at), true
}

// LeftReady is how long after a moment a process said that its link is not ready.
func (k *Clock) LeftReady(node string, at time.Time) (time.Duration, bool) {
	for _, e := range k.states[node] { // in the order in which they were written
		if !e.At.Before(at) && e.Name != "ready" {
			return e.At.Sub(at), true
		}
	}
	return 0, false
}

// LongestGap is the longest time without an answer of one client that overlaps the time
// from a moment until another, and whether the client was answered again after it began.
func (k *Clock) LongestGap(client string, from, until time.Time) (longest time.Duration, ok bool) {
	var last time.Time
	for _, c := range k.served[client] { // in the order in which the answers came, or nearly so
		if !last.IsZero() && c.answered.After(from) && last.Before(until) {
			longest, ok = max(longest, c.answered.Sub(last)), true
		}
		if c.answered.After(last) {
			last = c.answered
		}
	}
	return longest, ok && !last.Before(until)
}

// FirstAnswer is how long after a moment the first answer came to a call that the client
// made after that moment.
func (k *Clock) FirstAnswer(client string, at time.Time) (time.Duration, bool) {
	first := time.Time{}
	for _, c := range k.served[client] {
		if !c.made.Before(at) && (first.IsZero() || c.answered.Before(first)) {
			first = c.answered
		}
	}
	return first.Sub(at), !first.IsZero()
}
