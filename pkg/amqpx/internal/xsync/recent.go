package xsync

import "time"

// Recent is a set of keys with a maximum age and a maximum number of keys. A key beyond the
// maximum number replaces the oldest key. The zero value is empty. Not safe for concurrent use.
type Recent[K comparable] struct {
	until map[K]time.Time
	order []recentKey[K] // in the order of Add; without the removed keys, these are the keys of until
}

type recentKey[K comparable] struct {
	key   K
	until time.Time
}

// Add adds a key until the time now plus age. A key in the set keeps its time. All calls of Add
// pass the same age and the same maximum number of keys, most.
func (r *Recent[K]) Add(key K, now time.Time, age time.Duration, most int) {
	if r.Has(key, now) {
		return
	}
	if len(r.order) >= most {
		r.forgetOldest()
	}
	if r.until == nil {
		r.until = make(map[K]time.Time)
	}
	r.until[key] = now.Add(age)
	r.order = append(r.order, recentKey[K]{key, now.Add(age)})
}

// Has reports whether a key is remembered.
func (r *Recent[K]) Has(key K, now time.Time) bool {
	r.forgetOld(now)
	_, ok := r.until[key]
	return ok
}

// Remove forgets a key, and reports whether it was remembered.
func (r *Recent[K]) Remove(key K, now time.Time) bool {
	known := r.Has(key, now)
	delete(r.until, key)
	return known
}

// Len returns the number of remembered keys.
func (r *Recent[K]) Len(now time.Time) int {
	r.forgetOld(now)
	return len(r.until)
}

// forgetOld forgets the keys whose time has passed.
func (r *Recent[K]) forgetOld(now time.Time) {
	for len(r.order) > 0 && !now.Before(r.order[0].until) {
		r.forgetOldest()
	}
}

// forgetOldest forgets the key that was added first, unless the key was removed, and perhaps
// added again, since.
func (r *Recent[K]) forgetOldest() {
	oldest := r.order[0]
	if r.until[oldest.key].Equal(oldest.until) {
		delete(r.until, oldest.key)
	}
	if r.order = r.order[1:]; len(r.order) == 0 {
		*r = Recent[K]{} // neither a map nor a slice shrinks
	}
}
