package amqpx

import (
	"hash/maphash"

	"rabbitmq-rpc/pkg/amqpx/internal/wire"
)

// callTable finds pending calls by correlation id: a hash table whose buckets are lists through
// the calls, so that a call in the table takes 8 bytes more and no allocation of its own. The
// table grows by one bucket for each call (linear hashing), so no call waits while the table
// moves all others. The pending table's lock guards callTable.
type callTable struct {
	seed    maphash.Seed
	buckets []*call
	// mask is the number of buckets at the end of the present doubling, minus 1.
	mask  uint32
	count int
}

// hashOf returns the hash of a correlation id, which another program may have chosen.
func (t *callTable) hashOf(id *tableID) uint32 {
	if id.isText {
		return uint32(maphash.String(t.seed, id.text)) //nolint:gosec // a hash.
	}
	return uint32(maphash.Bytes(t.seed, id.uuid[:])) //nolint:gosec // a hash.
}

// bucket returns the bucket of a hash. Buckets that do not exist yet have their calls in the
// bucket at half of the doubled number.
func (t *callTable) bucket(hash uint32) **call {
	i := hash & t.mask
	if int(i) >= len(t.buckets) {
		i &= t.mask >> 1
	}
	return &t.buckets[i]
}

// find returns the call with an id, or nil.
func (t *callTable) find(hash uint32, id *tableID) *call {
	if t.count == 0 {
		return nil
	}
	k := *t.bucket(hash)
	for k != nil && (k.req.hash != hash || !k.req.has(id)) {
		k = k.sameBucket
	}
	return k
}

// add adds a call with an id that is not in the table.
func (t *callTable) add(k *call) {
	t.count++
	if t.count > len(t.buckets) {
		t.grow()
	}
	b := t.bucket(k.req.hash)
	k.sameBucket, *b = *b, k
}

// grow adds a bucket, and moves to the new bucket its calls from the bucket that had them.
func (t *callTable) grow() {
	i := uint32(len(t.buckets)) //nolint:gosec // bounded by the number of calls.
	t.buckets = append(t.buckets, nil)
	if i == 0 {
		return
	}
	if i > t.mask {
		t.mask = t.mask<<1 | 1
	}
	from, to := &t.buckets[i&(t.mask>>1)], &t.buckets[i]
	for *from != nil {
		k := *from
		if k.req.hash&t.mask != i {
			from = &k.sameBucket
			continue
		}
		*from = k.sameBucket
		k.sameBucket, *to = *to, k
	}
}

// remove removes a call, which is in the table.
func (t *callTable) remove(k *call) {
	at := t.bucket(k.req.hash)
	for *at != k {
		at = &(*at).sameBucket
	}
	*at, k.sameBucket = k.sameBucket, nil
	t.count--
}

// all calls yield for each call until yield returns false.
func (t *callTable) all(yield func(*call) bool) {
	for _, k := range t.buckets {
		for ; k != nil; k = k.sameBucket {
			if !yield(k) {
				return
			}
		}
	}
}

// recentCalls remembers the last maxRecent settled calls, which tell a duplicate or late response
// from a response to an unknown call. The pending table's lock guards recentCalls.
type recentCalls struct {
	calls []recentCall // a ring in the order of removal
	next  int          // the place of the next call
	index ringIndex    // nil before the first call
}

// recentCall is a settled call.
type recentCall struct {
	id       tableID
	hash     uint32
	answered bool
}

// find returns the call with an id, or nil. The pointer is valid until the next add.
func (r *recentCalls) find(hash uint32, id *tableID) *recentCall {
	if r.index == nil {
		return nil
	}
	for i := r.index.home(hash); ; i++ {
		e := *r.index.at(i)
		if e.place == 0 {
			return nil
		}
		if k := &r.calls[e.place-1]; e.hash == hash && k.id == *id {
			return k
		}
	}
}

// add remembers a call, in the place of the oldest.
func (r *recentCalls) add(k recentCall) {
	place := uint32(r.next) //nolint:gosec // below maxRecent.
	if len(r.calls) < maxRecent {
		if r.index == nil {
			r.index = make(ringIndex, 2*maxRecent)
		}
		r.calls = append(r.calls, k)
	} else {
		r.index.remove(r.calls[place].hash, place)
		r.calls[place] = k
	}
	r.index.add(k.hash, place)
	r.next = (r.next + 1) % maxRecent
}

// match returns why a response to a settled call settles no call; s is nil for an unknown call.
func (s *recentCall) match(a *wire.Response) matchResult {
	switch {
	case s == nil:
		return verdictUnknown
	case s.answered:
		return repeated(a)
	case a.Failure != nil && a.Failure.Code == string(CodeCanceled):
		return verdictCanceled
	default:
		return verdictLate
	}
}
