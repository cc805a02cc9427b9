package amqpx

import "time"

// executionTable finds running executions by the hash of the request's id. A map with the id
// as its key would hash and compare all parts of the id at each lookup. Executions with equal
// hashes are linked by sameHash.
type executionTable map[uint64]*execution

// find returns the execution of the requests with an id, or nil.
func (t executionTable) find(m *serverMethod, id *requestID, hash uint64) *execution {
	x := t[hash]
	for x != nil && !x.has(m, id) {
		x = x.sameHash
	}
	return x
}

// add adds an execution, of whose id there is none in the table.
func (t executionTable) add(x *execution) {
	x.sameHash = t[x.idHash]
	t[x.idHash] = x
}

// remove removes an execution, which is in the table.
func (t executionTable) remove(x *execution) {
	switch before := t[x.idHash]; {
	case before != x:
		for before.sameHash != x {
			before = before.sameHash
		}
		before.sameHash = x.sameHash
	case x.sameHash == nil:
		delete(t, x.idHash)
	default:
		t[x.idHash] = x.sameHash
	}
	x.sameHash = nil
}

// has reports whether q is a request for a method with an id.
func (q *executedRequest) has(m *serverMethod, id *requestID) bool {
	return q.id.id == id.id && q.method == m && q.id.requestID == *id
}

// storedResponse is the response of an execution, with the request by which duplicates find it.
type storedResponse struct {
	executedRequest
	response

	ended time.Duration // since dedupCache.start
	gone  bool          // the response was removed before its turn
}

// entryOverhead estimates the memory of a stored response without its ids and body, in bytes.
const entryOverhead = 256

// size estimates the memory of the response in bytes.
func (s *storedResponse) size() int {
	n := entryOverhead + len(s.id.scope) + len(s.id.id) + len(s.replyTo) + len(s.body)
	if s.err != nil {
		n += len(s.err.message)
	}
	return n + s.props.Size()
}

// minRingSize is the minimum number of entries for which a responseRing has room.
const minRingSize = 64

// responseRing holds stored responses in the order of their ends, numbered from 1. The
// responses are values in one slice, and the index holds no pointers, because the garbage
// collector would follow a pointer to each of many thousand responses in every cycle. The zero
// value is empty.
type responseRing struct {
	entries    []storedResponse // the response with number n is in place n modulo the length, a power of two
	index      ringIndex
	first, end uint64 // the numbers of the oldest response and of the next one; 0 before the first response
	bytes      int
}

// place returns the place of a number, which is below 1<<32.
func (r *responseRing) place(number uint64) uint32 { return uint32(number & r.mask()) } //nolint:gosec // bounded by the memory.

func (r *responseRing) mask() uint64 { return uint64(len(r.entries) - 1) } //nolint:gosec // never negative here.

// get returns the response with a number, or nil. The pointer is valid until the ring changes.
func (r *responseRing) get(number uint64) *storedResponse {
	if number < r.first || number >= r.end {
		return nil
	}
	if s := &r.entries[r.place(number)]; !s.gone {
		return s
	}
	return nil
}

// find returns the response for the requests with an id, and its number; nil if there is none.
func (r *responseRing) find(m *serverMethod, id *requestID, hash uint64) (number uint64, s *storedResponse) {
	if len(r.entries) == 0 {
		return 0, nil
	}
	upper := upperHalf(hash)
	for i := r.index.home(upper); ; i++ {
		e := *r.index.at(i)
		if e.place == 0 {
			return 0, nil
		}
		place := e.place - 1
		if s = &r.entries[place]; e.hash == upper && s.has(m, id) {
			return r.first + uint64(place-r.place(r.first))&r.mask(), s
		}
	}
}

func (r *responseRing) isEmpty() bool { return r.first == r.end }

// count returns the number of entries.
func (r *responseRing) count() int { return int(r.end - r.first) } //nolint:gosec // bounded by the memory.

// add adds a response and returns its number.
func (r *responseRing) add(s *storedResponse) (number uint64) {
	switch n := len(r.entries); {
	case n == 0:
		r.first, r.end = 1, 1
		r.resize(minRingSize)
	case r.count() == n:
		r.resize(2 * n)
	case n > minRingSize && r.count() < n/8:
		r.resize(n / 4)
	}
	number = r.end
	r.end++
	r.entries[r.place(number)] = *s
	r.index.add(upperHalf(s.idHash), r.place(number))
	r.bytes += s.size()
	return number
}

// resize moves the responses to a new slice.
func (r *responseRing) resize(size int) {
	old := *r
	r.entries, r.index = make([]storedResponse, size), make(ringIndex, 2*size)
	for n := r.first; n < r.end; n++ {
		s := &r.entries[r.place(n)]
		*s = old.entries[old.place(n)]
		if !s.gone {
			r.index.add(upperHalf(s.idHash), r.place(n))
		}
	}
}

// removeFirst removes the oldest entry.
func (r *responseRing) removeFirst() {
	s := &r.entries[r.place(r.first)]
	if s.gone {
		r.bytes -= entryOverhead
	} else {
		r.bytes -= s.size()
		r.index.remove(upperHalf(s.idHash), r.place(r.first))
	}
	*s = storedResponse{}
	r.first++
}

// remove removes a response. Its entry stays, and counts with entryOverhead, until it is the
// oldest.
func (r *responseRing) remove(number uint64) {
	s := r.get(number)
	r.bytes -= s.size() - entryOverhead
	r.index.remove(upperHalf(s.idHash), r.place(number))
	*s = storedResponse{gone: true}
}

// upperHalf returns the part of a hash that a ringIndex uses.
func upperHalf(hash uint64) uint32 { return uint32(hash >> 32) }

// ringIndex finds the places in a ring, of responses or of settled calls, by the hashes of their
// ids: a hash table with linear probing, whose length is a power of two. At most half of the
// elements are in use.
type ringIndex []indexElement

// indexElement holds a hash, and a place plus 1; the zero value is free.
type indexElement struct{ hash, place uint32 }

// home returns where the search for a hash begins, modulo the length.
func (t ringIndex) home(hash uint32) int { return int(hash >> 1) }

// at returns the element at a position modulo the length.
func (t ringIndex) at(i int) *indexElement { return &t[i&(len(t)-1)] }

// add adds a place.
func (t ringIndex) add(hash, place uint32) {
	e := indexElement{hash, place + 1}
	i := t.home(e.hash)
	for t.at(i).place != 0 {
		i++
	}
	*t.at(i) = e
}

// remove removes a place, which is in the index. Later elements move up, so that a search for
// them passes no free element.
func (t ringIndex) remove(hash, place uint32) {
	free := t.home(hash)
	for t.at(free).place != place+1 {
		free++
	}
	for i := free + 1; t.at(i).place != 0; i++ {
		if e := *t.at(i); (i-t.home(e.hash))&(len(t)-1) >= i-free { // its search begins at free or before
			*t.at(free) = e
			free = i
		}
	}
	*t.at(free) = indexElement{}
}
