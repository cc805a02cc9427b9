package amqpx

import (
	"crypto/rand"
	"sync"

	"github.com/google/uuid"
)

// newID returns a correlation id, a UUID of version 4 (RFC 9562 section 5.4). It is not
// to be guessed: who knows a call's key can have its answer. Safe for concurrent use.
func newID() string {
	s, _ := idSources.Get().(*idSource)
	id := s.next()
	idSources.Put(s)
	return id.String()
}

// idSources are sources of random bytes that nobody uses at the moment.
//
//nolint:gochecknoglobals // what is in it is the same for everybody.
var idSources = sync.Pool{New: func() any { return &idSource{used: idBytes} }}

// idBytes is how many random bytes are fetched at once: asking the system for each id
// takes longer than all the rest of making one.
const idBytes = 64 * len(uuid.UUID{})

// idSource makes ids for one goroutine at a time.
type idSource struct {
	used  int
	bytes [idBytes]byte
}

func (s *idSource) next() (id uuid.UUID) {
	if s.used == len(s.bytes) {
		_, _ = rand.Read(s.bytes[:]) // never returns an error
		s.used = 0
	}
	s.used += copy(id[:], s.bytes[s.used:])
	id[6] = id[6]&0x0f | 0x40 // version 4
	id[8] = id[8]&0x3f | 0x80 // variant of the RFC
	return id
}
