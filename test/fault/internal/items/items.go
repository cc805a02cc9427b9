// Package items makes the numbered items of the streams of the fault suite, and finds what is
// wrong with the items that arrive.
package items

import (
	"bytes"
	"fmt"
	"strconv"
)

// Direction is the direction of an item.
type Direction string

// The directions.
const (
	Up   Direction = "up"   // from a client to a handler
	Down Direction = "down" // from a handler to a client
)

// Item returns the item with a number of a stream, of at least size bytes.
func Item(stream string, d Direction, number, size int) []byte {
	item := fmt.Appendf(make([]byte, 0, size+len(stream)), "%s %s %d ", stream, d, number)
	for len(item) < size {
		item = append(item, byte('a'+len(item)%26))
	}
	return item
}

// Wrong counts what was wrong with the items that arrived.
type Wrong struct {
	// Missing counts the numbers that were left out, Repeated the items that came again,
	// Misplaced those that came behind a later one, Foreign those that belong to another stream,
	// another direction, or were changed.
	Missing   int `json:"missing,omitempty"`
	Repeated  int `json:"repeated,omitempty"`
	Misplaced int `json:"misplaced,omitempty"`
	Foreign   int `json:"foreign,omitempty"`
}

// Plus returns the sum of both.
func (w Wrong) Plus(other Wrong) Wrong {
	return Wrong{
		Missing: w.Missing + other.Missing, Repeated: w.Repeated + other.Repeated,
		Misplaced: w.Misplaced + other.Misplaced, Foreign: w.Foreign + other.Foreign,
	}
}

// Sequence judges the items of one stream and direction that arrive.
type Sequence struct {
	stream string
	d      Direction
	seen   []bool // by number
	// Count is the number of items that arrived, of every kind.
	Count int
	// Wrong is what was wrong with them.
	Wrong Wrong
}

// NewSequence returns a sequence without items.
func NewSequence(stream string, d Direction) *Sequence { return &Sequence{stream: stream, d: d} }

// Add adds an item that arrived, and returns its number; -1 for an item that is foreign.
func (s *Sequence) Add(item []byte) int {
	s.Count++
	number, ok := s.number(item)
	switch {
	case !ok:
		s.Wrong.Foreign++
		return -1
	case number < len(s.seen) && s.seen[number]:
		s.Wrong.Repeated++
	case number < len(s.seen):
		s.Wrong.Misplaced++
		s.Wrong.Missing--
		s.seen[number] = true
	default:
		s.Wrong.Missing += number - len(s.seen)
		s.seen = append(s.seen, make([]bool, number-len(s.seen)+1)...)
		s.seen[number] = true
	}
	return number
}

// maxNumber bounds the numbers that are taken for true.
const maxNumber = 1 << 24

// number returns the number of an item that is as Item made it.
func (s *Sequence) number(item []byte) (int, bool) {
	words := bytes.SplitN(item, []byte(" "), 4)
	if len(words) < 4 {
		return 0, false
	}
	n, err := strconv.Atoi(string(words[2]))
	if err != nil || n < 0 || n > maxNumber {
		return 0, false
	}
	return n, bytes.Equal(item, Item(s.stream, s.d, n, len(item)))
}
