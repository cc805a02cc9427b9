package amqpxprom

import (
	"maps"
	"strings"
	"sync"
	"sync/atomic"
)

// longestMethod is the maximum length in bytes of a method name in amqpx. A call with a longer
// name fails at once.
const longestMethod = 255

// methods maps method names to values of type T. Every call reads the map, so the map is
// replaced and never modified, and reads take no lock. methods is safe for concurrent use.
type methods[T any] struct {
	create func(label string) T
	most   int      // maximum number of names; 0: no limit
	other  func() T // value of all further names
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

// add adds a name at its first use.
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
	// A clone: the name may be part of a large string, which must not stay in memory.
	added := m.create(text(name))
	more[strings.Clone(name)] = added
	m.known.Store(&more)
	return added
}
