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
}

// Add takes an entry.
func (k *Clock) Add(e ledger.Entry) {
	switch {
	case e.Kind == ledger.End && e.Code == ledger.OK:
		k.answers, k.sorted = append(k.answers, e.At), false
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
