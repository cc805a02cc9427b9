package amqpx

import "time"

// deadlines are the calls that have the client's own deadline, in its order: as it is
// the same time after each call's begin, a list and one timer serve all of them. The
// pending table's lock guards it.
type deadlines struct {
	oldest, newest *call
	timer          *time.Timer // runs until the oldest's deadline, or an earlier one's; nil at first
	running        bool
}

// deadlineSlack is how much later than its deadline a call may learn of it because it
// was not added in order.
const deadlineSlack = time.Millisecond

// add puts a call behind the others, or returns false if its place is not there. When
// a deadline has passed, expire is called.
func (l *deadlines) add(k *call, expire func()) bool {
	if l.newest != nil && k.deadline.Before(l.newest.deadline.Add(-deadlineSlack)) {
		return false
	}
	k.listed, k.older = true, l.newest
	if l.newest == nil {
		l.oldest = k
	} else {
		l.newest.newer = k
	}
	l.newest = k
	switch {
	case l.running:
	case l.timer == nil:
		l.timer = time.AfterFunc(time.Until(k.deadline), expire)
	default:
		l.timer.Reset(time.Until(k.deadline))
	}
	l.running = true
	return true
}

// remove takes a call out, if it is in. The timer is left to run.
func (l *deadlines) remove(k *call) {
	if !k.listed {
		return
	}
	l.link(k.older, k.newer)
	k.listed, k.older, k.newer = false, nil, nil
}

// replace puts a call in the place of another, if that is in.
func (l *deadlines) replace(k, by *call) {
	if !k.listed {
		return
	}
	older, newer := k.older, k.newer
	k.listed, k.older, k.newer = false, nil, nil
	by.listed = true
	l.link(older, by)
	l.link(by, newer)
}

// link makes two calls neighbours; nil stands for the end of the list.
func (l *deadlines) link(older, newer *call) {
	if older == nil {
		l.oldest = newer
	} else {
		older.newer = newer
	}
	if newer == nil {
		l.newest = older
	} else {
		newer.older = older
	}
}

// expired takes out the calls whose deadline has passed, and winds the timer again.
func (l *deadlines) expired(now time.Time) (all []*call) {
	for k := l.oldest; k != nil && !k.deadline.After(now); k = l.oldest {
		l.remove(k)
		all = append(all, k)
	}
	if l.running = l.oldest != nil; l.running {
		l.timer.Reset(l.oldest.deadline.Sub(now))
	}
	return all
}

// stop ends the timer.
func (l *deadlines) stop() {
	if l.timer != nil {
		l.timer.Stop()
	}
}
