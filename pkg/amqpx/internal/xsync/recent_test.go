package xsync

import (
	"testing"
	"time"
)

func TestRecentKeys(t *testing.T) {
	t.Parallel()
	const most = 3
	start := time.Unix(0, 0)
	var r Recent[string]
	add := func(after time.Duration, keys ...string) {
		for _, key := range keys {
			r.Add(key, start.Add(after), time.Minute, most)
		}
	}
	want := func(after time.Duration, want string) {
		t.Helper()
		got := ""
		for _, key := range []string{"a", "b", "c", "d"} {
			if r.Has(key, start.Add(after)) {
				got += key
			}
		}
		wantSame(t, "remembered after "+after.String(), got, want)
		wantSame(t, "number", r.Len(start.Add(after)), len(want))
	}
	want(0, "")
	add(0, "a", "b")
	add(time.Second, "a", "c") // the age of a does not begin again
	want(time.Minute-1, "abc")
	add(time.Minute-1, "d")
	want(time.Minute-1, "bcd") // without the oldest
	want(time.Minute, "cd")
	want(time.Minute+time.Second, "d")
	want(2*time.Minute, "")
	wantSame(t, "memory", r.until == nil && r.order == nil, true)
}

func TestRecentKeyIsRemoved(t *testing.T) {
	t.Parallel()
	now := time.Unix(0, 0)
	var r Recent[string]
	wantSame(t, "removed from none", r.Remove("a", now), false)
	r.Add("a", now, time.Minute, 2)
	wantSame(t, "removed", r.Remove("a", now), true)
	wantSame(t, "removed twice", r.Remove("a", now), false)
	r.Add("a", now.Add(time.Second), time.Minute, 2)
	r.Add("b", now.Add(time.Second), time.Minute, 2) // the first place of a is free
	wantSame(t, "number", r.Len(now.Add(time.Second)), 2)
	wantSame(t, "the key added again, after its first time", r.Has("a", now.Add(time.Minute)), true)
	wantSame(t, "removed too late", r.Remove("b", now.Add(time.Minute+time.Second)), false)
}

// Keys that are added and removed all the time take no more memory than the limit allows.
func TestRecentKeysAreBounded(t *testing.T) {
	t.Parallel()
	now := time.Unix(0, 0)
	var r Recent[int]
	for i := range 1000 {
		r.Add(i%5, now, time.Minute, 10)
		r.Remove(i%5, now)
	}
	wantSame(t, "number", r.Len(now), 0)
	if n := cap(r.order); n > 40 {
		t.Errorf("room for %d keys", n)
	}
}
