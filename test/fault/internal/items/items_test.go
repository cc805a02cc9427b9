package items_test

import (
	"testing"

	"rabbitmq-rpc/test/fault/internal/items"
)

const stream = "s-1"

func TestSequence(t *testing.T) {
	t.Parallel()
	const size = 40
	for name, c := range map[string]struct {
		numbers []int
		want    items.Wrong
	}{
		"whole":        {[]int{0, 1, 2, 3}, items.Wrong{}},
		"none":         {nil, items.Wrong{}},
		"gap":          {[]int{0, 1, 4}, items.Wrong{Missing: 2}},
		"begins late":  {[]int{2, 3}, items.Wrong{Missing: 2}},
		"repeated":     {[]int{0, 1, 1, 0, 2}, items.Wrong{Repeated: 2}},
		"order":        {[]int{0, 2, 1, 3}, items.Wrong{Misplaced: 1}},
		"all together": {[]int{0, 3, 1, 3, 5}, items.Wrong{Missing: 2, Misplaced: 1, Repeated: 1}},
	} {
		s := items.NewSequence(stream, items.Down)
		for _, n := range c.numbers {
			if got := s.Add(items.Item(stream, items.Down, n, size)); got != n {
				t.Errorf("%s: number %d, want %d", name, got, n)
			}
		}
		if s.Wrong != c.want || s.Count != len(c.numbers) {
			t.Errorf("%s: %+v of %d, want %+v of %d", name, s.Wrong, s.Count, c.want, len(c.numbers))
		}
	}
}

func TestForeignItems(t *testing.T) {
	t.Parallel()
	const size = 40
	changed := items.Item(stream, items.Down, 0, size)
	changed[size-1]++
	for name, item := range map[string][]byte{
		"another stream":    items.Item("s-2", items.Down, 0, size),
		"another direction": items.Item(stream, items.Up, 0, size),
		"changed":           changed,
		"empty":             nil,
		"no number":         []byte("s-1 down x "),
		"negative":          []byte("s-1 down -1 "),
		"large":             []byte("s-1 down 99999999999 "),
	} {
		s := items.NewSequence(stream, items.Down)
		if got := s.Add(item); got != -1 || s.Wrong != (items.Wrong{Foreign: 1}) {
			t.Errorf("%s: number %d, %+v", name, got, s.Wrong)
		}
	}
}

func TestSizes(t *testing.T) {
	t.Parallel()
	for _, size := range []int{0, 1, 11, 100, 5000} {
		item := items.Item(stream, items.Up, 7, size)
		s := items.NewSequence(stream, items.Up)
		if got := s.Add(item); got != 7 || len(item) < size || s.Wrong.Foreign != 0 {
			t.Errorf("size %d: %d bytes, number %d, %+v", size, len(item), got, s.Wrong)
		}
	}
}
