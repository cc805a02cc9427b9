package amqpxprom

import (
	"maps"
	"strings"
	"sync"
	"sync/atomic"
)

// longestMethod is the longest name of a method that amqpx sends, in bytes. Names beyond
// it are of calls that failed at once.
const longestMethod = 255

// methods finds what belongs to a method. Every call goes through it, so it is a map that
// is replaced and never changed, and read without a lock. Safe for concurrent use.
type methods[T any] struct {
	create func(label string) T
	most   int      // names that are remembered; 0: no limit
	other  func() T // what belongs to all the others
	known  atomic.Pointer[map[string]T]
	mu     sync.Mutex // held to replace known
}

func newMethods[T any](most int, create func(label string) T) *methods[T] {
	m := &methods[T]{
		create: create,
		most:   most,
		other:  sync.OnceValue(func() T { return create(labelOther) }),
	}
	m.known.Store(new(map[string]T))
	return m
}

func (m *methods[T]) of(name string) T {
	known := *m.known.Load()
	if found, ok := known[name]; ok {
		return found
	}
	if len(name) > longestMethod || m.full(known) {
		return m.other()
	}
	return m.add(name)
}

func (m *methods[T]) full(known map[string]T) bool { return m.most > 0 && len(known) >= m.most }

// add remembers a name that comes up for the first time.
func (m *methods[T]) add(name string) T {
	m.mu.Lock()
	defer m.mu.Unlock()
	known := *m.known.Load()
	if found, ok := known[name]; ok {
		return found
	}
	if m.full(known) {
		return m.other()
	}
	more := make(map[string]T, len(known)+1)
	maps.Copy(more, known)
	// A copy, because the name may be a part of something large that must not stay.
	added := m.create(text(name))
	more[strings.Clone(name)] = added
	m.known.Store(&more)
	return added
}
