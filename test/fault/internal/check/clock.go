package check

import (
	"slices"
	"sort"
	"time"

	"rabbitmq-rpc/test/fault/internal/ledger"
)

// Clock collects the entries of a run that are needed to measure times. The zero value is
// ready to use.
type Clock struct {
	responses []time.Time
	sorted    bool
	states    map[string][]ledger.Entry
	made      map[string]time.Time // by the id of the call
	served    map[string][]served  // by client
	shapes    map[string]bool      // the ids of the calls that are no plain calls, which are left out
}

// served is a call with a response.
type served struct{ made, answered time.Time }

// Add adds an entry.
func (k *Clock) Add(e ledger.Entry) {
	switch {
	case e.Kind == ledger.Start && e.Shape != "":
		if k.shapes == nil {
			k.shapes = make(map[string]bool)
		}
		k.shapes[e.ID] = true
	case k.shapes[e.ID]:
	case e.Kind == ledger.Start:
		if k.made == nil {
			k.made, k.served = make(map[string]time.Time), make(map[string][]served)
		}
		k.made[e.ID] = e.At
	case e.Kind == ledger.End && e.Code == ledger.OK:
		k.responses, k.sorted = append(k.responses, e.At), false
		if made, ok := k.made[e.ID]; ok { // the start precedes the end in the same file
			k.served[e.Node] = append(k.served[e.Node], served{made, e.At})
		}
	case e.Kind == ledger.Status:
		if k.states == nil {
			k.states = make(map[string][]ledger.Entry)
		}
		k.states[e.Node] = append(k.states[e.Node], e)
	}
}

// RespondedAfter returns the time from a moment to the next response.
func (k *Clock) RespondedAfter(at time.Time) (time.Duration, bool) {
	if !k.sorted {
		slices.SortFunc(k.responses, time.Time.Compare)
		k.sorted = true
	}
	i := sort.Search(len(k.responses), func(i int) bool { return !k.responses[i].Before(at) })
	if i == len(k.responses) {
		return 0, false
	}
	return k.responses[i].Sub(at), true
}

// LeftReady returns the time from a moment until a process's status was not ready.
func (k *Clock) LeftReady(node string, at time.Time) (time.Duration, bool) {
	for _, e := range k.states[node] { // in the order in which they were written
		if !e.At.Before(at) && e.Name != "ready" {
			return e.At.Sub(at), true
		}
	}
	return 0, false
}

// LongestGap returns the client's longest time without a response that overlaps the time
// between two moments, and whether a response ended the gap.
func (k *Clock) LongestGap(client string, from, until time.Time) (longest time.Duration, ok bool) {
	var last time.Time
	for _, c := range k.served[client] { // in the order of the responses, or nearly so
		if !last.IsZero() && c.answered.After(from) && last.Before(until) {
			longest, ok = max(longest, c.answered.Sub(last)), true
		}
		if c.answered.After(last) {
			last = c.answered
		}
	}
	return longest, ok && !last.Before(until)
}

// FirstResponse returns the time from a moment to the first response among the client's calls
// made after this moment.
func (k *Clock) FirstResponse(client string, at time.Time) (time.Duration, bool) {
	first := time.Time{}
	for _, c := range k.served[client] {
		if !c.made.Before(at) && (first.IsZero() || c.answered.Before(first)) {
			first = c.answered
		}
	}
	return first.Sub(at), !first.IsZero()
}
