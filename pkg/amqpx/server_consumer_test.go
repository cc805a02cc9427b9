package amqpx

import (
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
)

func TestOpenTagsSettle(t *testing.T) {
	t.Parallel()
	steps := []struct {
		name                   string
		tags, together, single []uint64
	}{
		{"the first", []uint64{1}, []uint64{1}, nil},
		{"a run", []uint64{2, 3, 4}, []uint64{2, 3, 4}, nil},
		{"behind a gap", []uint64{6, 7}, nil, []uint64{6, 7}},
		{"on both sides of another gap", []uint64{5, 9}, []uint64{5}, []uint64{9}},
		{"the gap closes", []uint64{8, 10}, []uint64{8, 10}, nil},
	}
	var o unackedTags
	for _, s := range steps {
		together, single := o.ack(s.tags)
		if !slices.Equal(together, s.together) || !slices.Equal(single, s.single) {
			t.Errorf("%s: together %v, single %v; want %v and %v", s.name, together, single, s.together, s.single)
		}
	}
	if len(o.gaps) > 0 {
		t.Errorf("gaps left: %v", o.gaps)
	}
}

// In any order of completion, every request is acknowledged once, and never before its
// completion.
func TestOpenTagsAcknowledgeWhatIsSettled(t *testing.T) {
	t.Parallel()
	const prefetch, total = 32, 5000
	var o unackedTags
	open, acked := map[uint64]bool{}, 0
	for next := uint64(1); next <= total || len(open) > 0; {
		for ; len(open) < prefetch && next <= total; next++ {
			open[next] = true
		}
		var tags []uint64
		for tag := range open {
			if rand.IntN(4) == 0 {
				tags = append(tags, tag)
			}
		}
		slices.Sort(tags)
		together, single := o.ack(tags)
		if len(together) > 0 {
			last := together[len(together)-1]
			for tag := range maps.Clone(open) {
				if tag <= last && !slices.Contains(together, tag) {
					t.Fatalf("%d is open, and %d acknowledges it", tag, last)
				}
			}
		}
		for _, tag := range slices.Concat(together, single) {
			delete(open, tag)
			acked++
		}
		if len(o.gaps) > prefetch {
			t.Fatalf("%d gaps at a prefetch of %d", len(o.gaps), prefetch)
		}
	}
	if acked != total {
		t.Errorf("acknowledged %d of %d", acked, total)
	}
}
