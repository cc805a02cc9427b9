package amqpx

import (
	"context"
	"time"
)

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

// watches tell calls that nobody waits for when their contexts end. Calls made with the
// same context share one watch. The pending table's lock guards them.
type watches map[<-chan struct{}]*contextWatch

// contextWatch is the calls of one context.
type contextWatch struct {
	done  <-chan struct{}
	calls []*call     // each knows its place
	stop  func() bool // ends the watch; nil until it is set up
}

// watch has the call told when its context ends.
func (p *pending) watch(ctx context.Context, k *call) {
	done := ctx.Done()
	if done == nil {
		return
	}
	p.mu.Lock()
	w := p.watches[done]
	fresh := w == nil
	if fresh {
		w = &contextWatch{done: done}
		p.watches[done] = w
	}
	k.watch, k.watchPlace = w, len(w.calls)
	w.calls = append(w.calls, k)
	p.mu.Unlock()
	if !fresh {
		return
	}
	stop := context.AfterFunc(ctx, func() { p.contextEnded(w) })
	p.mu.Lock()
	w.stop = stop
	abandoned := p.watches[done] != w
	p.mu.Unlock()
	if abandoned {
		stop()
	}
}

// contextEnded tells the calls of a context.
func (p *pending) contextEnded(w *contextWatch) {
	p.mu.Lock()
	calls := w.calls
	w.calls = nil
	for _, k := range calls {
		k.watch = nil
		k.slot.over = append(k.slot.over, event{kind: eventGone})
	}
	p.watches.forget(w)
	p.mu.Unlock()
	for _, k := range calls {
		k.tell(event{kind: eventGone})
	}
}

// forget takes a watch out. The caller holds the table's lock.
func (all watches) forget(w *contextWatch) {
	if all[w.done] == w {
		delete(all, w.done)
	}
}

// remove takes a call out of its watch, if it has one, and returns what ends the watch
// when that was its last. The caller holds the table's lock.
func (all watches) remove(k *call) (stop func() bool) {
	w := k.watch
	if w == nil {
		return nil
	}
	k.watch = nil
	last := len(w.calls) - 1
	w.calls[k.watchPlace] = w.calls[last]
	w.calls[k.watchPlace].watchPlace = k.watchPlace
	w.calls[last] = nil
	if w.calls = w.calls[:last]; last > 0 {
		return nil
	}
	all.forget(w)
	return w.stop
}

// replace puts a call in the place of another in its watch. The caller holds the table's
// lock.
func (all watches) replace(k, by *call) {
	if w := k.watch; w != nil {
		w.calls[k.watchPlace] = by
		by.watch, by.watchPlace, k.watch = w, k.watchPlace, nil
	}
}
