package amqpx

import (
	"context"
	"time"
)

// deadlineList are the calls that have the client's own deadline, in its order: as it is
// the same time after each call's begin, a list and one timer serve all of them. The
// pending table's lock guards it.
type deadlineList struct {
	oldest, newest *call
	timer          *time.Timer // runs until the oldest's deadline, or an earlier one's; nil at first
	running        bool
}

// deadlineSlack is how much later than its deadline a call may learn of it because it
// was not added in order.
const deadlineSlack = time.Millisecond

// add puts a call behind the others, or returns false if its place is not there. When
// a deadline has passed, expire is called.
func (l *deadlineList) add(k *call, expire func()) bool {
	if l.newest != nil && k.deadline.Before(l.newest.deadline.Add(-deadlineSlack)) {
		return false
	}
	k.inDeadlines, k.prevDue = true, l.newest
	if l.newest == nil {
		l.oldest = k
	} else {
		l.newest.nextDue = k
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
func (l *deadlineList) remove(k *call) {
	if !k.inDeadlines {
		return
	}
	l.link(k.prevDue, k.nextDue)
	k.inDeadlines, k.prevDue, k.nextDue = false, nil, nil
}

// replace puts a call in the place of another, if that is in.
func (l *deadlineList) replace(k, by *call) {
	if !k.inDeadlines {
		return
	}
	older, newer := k.prevDue, k.nextDue
	k.inDeadlines, k.prevDue, k.nextDue = false, nil, nil
	by.inDeadlines = true
	l.link(older, by)
	l.link(by, newer)
}

// link makes two calls neighbours; nil stands for the end of the list.
func (l *deadlineList) link(older, newer *call) {
	if older == nil {
		l.oldest = newer
	} else {
		older.nextDue = newer
	}
	if newer == nil {
		l.newest = older
	} else {
		newer.prevDue = older
	}
}

// expired takes out the calls whose deadline has passed, and winds the timer again.
func (l *deadlineList) expired(now time.Time) (all []*call) {
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
func (l *deadlineList) stop() {
	if l.timer != nil {
		l.timer.Stop()
	}
}

// ctxWatchers tell calls that nobody waits for when their contexts end. Calls made with the
// same context share one watch. The pending table's lock guards them.
type ctxWatchers map[<-chan struct{}]*ctxWatcher

// ctxWatcher is the calls of one context.
type ctxWatcher struct {
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
	w := p.watchers[done]
	fresh := w == nil
	if fresh {
		w = &ctxWatcher{done: done}
		p.watchers[done] = w
	}
	k.watcher, k.watcherIndex = w, len(w.calls)
	w.calls = append(w.calls, k)
	p.mu.Unlock()
	if !fresh {
		return
	}
	stop := context.AfterFunc(ctx, func() { p.contextEnded(w) })
	p.mu.Lock()
	w.stop = stop
	abandoned := p.watchers[done] != w
	p.mu.Unlock()
	if abandoned {
		stop()
	}
}

// contextEnded tells the calls of a context.
func (p *pending) contextEnded(w *ctxWatcher) {
	p.mu.Lock()
	calls := w.calls
	w.calls = nil
	for _, k := range calls {
		k.watcher = nil
		k.entry.terminal = append(k.entry.terminal, event{kind: eventCanceled})
	}
	p.watchers.forget(w)
	p.mu.Unlock()
	for _, k := range calls {
		k.notify(event{kind: eventCanceled})
	}
}

// forget takes a watch out. The caller holds the table's lock.
func (all ctxWatchers) forget(w *ctxWatcher) {
	if all[w.done] == w {
		delete(all, w.done)
	}
}

// remove takes a call out of its watch, if it has one, and returns what ends the watch
// when that was its last. The caller holds the table's lock.
func (all ctxWatchers) remove(k *call) (stop func() bool) {
	w := k.watcher
	if w == nil {
		return nil
	}
	k.watcher = nil
	last := len(w.calls) - 1
	w.calls[k.watcherIndex] = w.calls[last]
	w.calls[k.watcherIndex].watcherIndex = k.watcherIndex
	w.calls[last] = nil
	if w.calls = w.calls[:last]; last > 0 {
		return nil
	}
	all.forget(w)
	return w.stop
}

// replace puts a call in the place of another in its watch. The caller holds the table's
// lock.
func (all ctxWatchers) replace(k, by *call) {
	if w := k.watcher; w != nil {
		w.calls[k.watcherIndex] = by
		by.watcher, by.watcherIndex, k.watcher = w, k.watcherIndex, nil
	}
}
