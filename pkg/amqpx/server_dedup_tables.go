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

func (r *responseRing) place(number uint64) uint32 {
	return uint32(number) & uint32(len(r.entries)-1) //nolint:gosec // the length is below 1<<32.
}

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
	for i := r.index.home(hash); ; i++ {
		place, sameHash, ok := r.index.at(i, hash)
		if !ok {
			return 0, nil
		}
		if s = &r.entries[place]; sameHash && s.has(m, id) {
			return r.first + uint64(place-r.place(r.first))&uint64(len(r.entries)-1), s
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
	r.index.add(s.idHash, r.place(number))
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
			r.index.add(s.idHash, r.place(n))
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
		r.index.remove(s.idHash, r.place(r.first))
	}
	*s = storedResponse{}
	r.first++
}

// remove removes a response. Its entry stays, and counts with entryOverhead, until it is the
// oldest.
func (r *responseRing) remove(number uint64) {
	s := r.get(number)
	r.bytes -= s.size() - entryOverhead
	r.index.remove(s.idHash, r.place(number))
	*s = storedResponse{gone: true}
}

// ringIndex finds the places of responses in a responseRing by the hashes of their requests'
// ids: a hash table with linear probing. An element holds the upper 32 bits of a hash, and the
// place plus 1 below them; 0 is a free element. At most half of the elements are in use.
type ringIndex []uint64

// home returns where the search for a hash begins. The result, and its successors, are positions
// modulo the length, a power of two.
func (t ringIndex) home(hash uint64) uint32 { return uint32(hash >> 32) }

// at returns the place at a position, and whether its response has the upper bits of hash; ok is
// false if the element is free, where the search ends.
func (t ringIndex) at(i uint32, hash uint64) (place uint32, sameHash, ok bool) {
	if len(t) == 0 {
		return 0, false, false
	}
	e := t[i&uint32(len(t)-1)]
	return uint32(e) - 1, e>>32 == hash>>32, e != 0
}

// add adds a place.
func (t ringIndex) add(hash uint64, place uint32) {
	mask := uint32(len(t) - 1)
	i := t.home(hash)
	for t[i&mask] != 0 {
		i++
	}
	t[i&mask] = hash>>32<<32 | uint64(place+1)
}

// remove removes a place, which is in the index. Later elements move up, so that a search for
// them passes no free element.
func (t ringIndex) remove(hash uint64, place uint32) {
	mask := uint32(len(t) - 1)
	free := t.home(hash)
	for uint32(t[free&mask]) != place+1 {
		free++
	}
	for i := free + 1; t[i&mask] != 0; i++ {
		if e := t[i&mask]; (i-t.home(e))&mask >= (i-free)&mask { // its search begins at free or before
			t[free&mask] = e
			free = i
		}
	}
	t[free&mask] = 0
}
