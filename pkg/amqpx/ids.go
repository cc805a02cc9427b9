package amqpx

import (
	"crypto/rand"
	"sync"

	"github.com/google/uuid"
)

// newID returns a correlation id, a UUID of version 4 (RFC 9562 section 5.4). It is not
// to be guessed: who knows a call's key can have its answer. Safe for concurrent use.
func newID() string {
	r, _ := idSources.Get().(*idSource)
	defer idSources.Put(r)
	id, err := uuid.NewRandomFromReader(r)
	if err != nil { // does not happen: the source has no errors
		return uuid.NewString()
	}
	return id.String()
}

// idSources are sources of random bytes that nobody uses at the moment.
//
//nolint:gochecknoglobals // what is in it is the same for everybody.
var idSources = sync.Pool{New: func() any { return &idSource{used: idBytes} }}

// idBytes is how many random bytes are fetched at once: asking the system for each id
// takes longer than all the rest of making one.
const idBytes = 1024

// idSource is a reader of random bytes, for one goroutine at a time.
type idSource struct {
	used  int
	bytes [idBytes]byte
}

// Read implements io.Reader.
func (s *idSource) Read(p []byte) (int, error) {
	if s.used == len(s.bytes) {
		_, _ = rand.Read(s.bytes[:]) // never returns an error
		s.used = 0
	}
	n := copy(p, s.bytes[s.used:])
	s.used += n
	return n, nil
}
