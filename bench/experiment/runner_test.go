package experiment

import (
	"slices"
	"testing"
)

// Every group has one turn in each round, every run has the same orders, and no group always follows
// the same other group.
func TestTurns(t *testing.T) {
	t.Parallel()
	const groups, rounds = 4, 20
	follows := make(map[[2]int]int)
	for round := range rounds {
		order := turns(round, groups)
		if again := turns(round, groups); !slices.Equal(order, again) {
			t.Errorf("round %d: %v, then %v", round, order, again)
		}
		sorted := slices.Sorted(slices.Values(order))
		if !slices.Equal(sorted, []int{0, 1, 2, 3}) {
			t.Fatalf("round %d: %v", round, order)
		}
		for i := range order[1:] {
			follows[[2]int{order[i], order[i+1]}]++
		}
	}
	for pair, n := range follows {
		if n > rounds/2 {
			t.Errorf("group %d follows group %d in %d of %d rounds", pair[1], pair[0], n, rounds)
		}
	}
}
