package amqpx

import (
	"bytes"
	"time"

	"github.com/google/uuid"

	"rabbitmq-rpc/pkg/amqpx/internal/wire"
)

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
// A server stores some ten thousand responses, so the parts that requests share, and the parts
// that few responses have, are elsewhere.
type storedResponse struct {
	origin           *requestOrigin // nil if the response was removed before its turn
	id               uuid.UUID      // requestID.id, unless it is in more
	idHash, bodyHash uint64         // of the request
	body             []byte         // of the response
	more             *storedExtras  // nil if the response has none of it
	ended            time.Duration  // since dedupCache.start
}

// requestOrigin is what requests of a caller for a method, and their responses, have in common. It is
// immutable.
type requestOrigin struct {
	method      *serverMethod
	id          identity // without the id itself
	replyTo     string
	contentType string // of responses that have no other properties
}

// storedExtras has the parts of a stored response that few responses have.
type storedExtras struct {
	id    string // requestID.id, if it is not a UUID in the form that newID makes
	call  *callKey
	err   *Error
	props *wire.Properties
}

// newStoredResponse returns the response of an ended execution for the requests of an origin.
func newStoredResponse(x *execution, origin *requestOrigin, ended time.Duration) storedResponse {
	s := storedResponse{origin: origin, idHash: x.idHash, bodyHash: x.bodyHash, body: trimmed(x.response.body), ended: ended}
	more := storedExtras{call: x.call, err: x.response.err}
	if origin.contentType == "" {
		more.props = x.response.props
	}
	if !parseUUID(&s.id, []byte(x.id.id)) {
		more.id = x.id.id
	}
	if more != (storedExtras{}) {
		s.more = new(more)
	}
	return s
}

// text returns requestID.id.
func (s *storedResponse) text() string {
	if s.more != nil && s.more.id != "" {
		return s.more.id
	}
	return s.id.String()
}

// request returns the request of the response.
func (s *storedResponse) request() *executedRequest {
	r := &executedRequest{method: s.origin.method, id: s.origin.id, replyTo: s.origin.replyTo, bodyHash: s.bodyHash, idHash: s.idHash, call: s.call()}
	r.id.id = s.text()
	return r
}

// call returns the key of the request's call; nil unless dedupCache.calls is used.
func (s *storedResponse) call() *callKey {
	if s.more == nil {
		return nil
	}
	return s.more.call
}

// response returns the response.
func (s *storedResponse) response() response {
	r := response{body: s.body}
	if s.more != nil {
		r.err, r.props = s.more.err, s.more.props
	}
	if s.origin.contentType != "" {
		r.props = &wire.Properties{ContentType: s.origin.contentType}
	}
	return r
}

// has reports whether the response is for the requests for a method with an id.
func (s *storedResponse) has(m *serverMethod, id *requestID) bool {
	o := &s.origin.id
	return s.origin.method == m && o.kind == id.kind && o.scope == id.scope && o.replyTo == id.replyTo && s.text() == id.id
}

// origins finds the origins of the last requests, so that stored responses share them. Requests
// with other origins take the same places in turn. The zero value is empty.
type origins [64]*requestOrigin

// of returns the origin of a request whose response has these properties. hash is that of the
// request's reply_to.
func (all *origins) of(q *executedRequest, props *wire.Properties, hash uint64) *requestOrigin {
	o := requestOrigin{method: q.method, id: q.id, replyTo: q.replyTo, contentType: soleContentType(props)}
	o.id.id = ""
	place := &all[(hash+uint64(q.method.number)+uint64(len(o.contentType)))%uint64(len(all))] //nolint:gosec // a number of methods.
	if *place == nil || **place != o {
		*place = new(o)
	}
	return *place
}

// soleContentType returns the content type of properties that have nothing else, as those of typed
// methods; "" for any others.
func soleContentType(p *wire.Properties) string {
	if p == nil || p.ContentEncoding != "" || p.Type != "" || len(p.Header)+len(p.Trailer) > 0 {
		return ""
	}
	return p.ContentType
}

// maxSlack bounds the memory behind a stored body that is not used, in bytes.
const maxSlack = 256

// trimmed returns body, or a copy if most of the memory behind body is not used: a handler may
// return a few bytes of a large buffer.
func trimmed(body []byte) []byte {
	if cap(body)-len(body) <= max(len(body), maxSlack) {
		return body
	}
	return bytes.Clone(body)
}

// entryOverhead bounds the memory of a stored response without its ids and body, in bytes.
const entryOverhead = 256

// size bounds the memory of the response in bytes.
func (s *storedResponse) size() int {
	n := entryOverhead + len(s.origin.id.scope) + len(someUUID) + len(s.origin.replyTo) + len(s.body)
	if s.more == nil {
		return n
	}
	if s.more.id != "" {
		n += len(s.more.id) - len(someUUID)
	}
	if s.more.err != nil {
		n += len(s.more.err.message) + wire.DetailsSize(s.more.err.details)
	}
	return n + s.more.props.Size()
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
	if s := &r.entries[r.place(number)]; s.origin != nil {
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
		if s.origin != nil {
			r.index.add(upperHalf(s.idHash), r.place(n))
		}
	}
}

// removeFirst removes the oldest entry.
func (r *responseRing) removeFirst() {
	s := &r.entries[r.place(r.first)]
	if s.origin == nil {
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
	*s = storedResponse{}
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
