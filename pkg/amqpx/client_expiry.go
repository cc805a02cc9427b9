package amqpx

import (
	"context"
	"time"
)

// deadlineList holds the calls with the client's default timeout. The timeout is constant, so
// the calls are already ordered by deadline and one timer suffices. The pending table's lock
// guards the list.
type deadlineList struct {
	oldest, newest *call
	timer          *time.Timer // runs until the oldest call's deadline or an earlier deadline; nil at first
	running        bool
}

// deadlineSlack is how late a call may learn of its deadline because it was added out of
// order.
const deadlineSlack = time.Millisecond

// add appends a call, or returns false if the call's deadline is before the newest call's by
// more than deadlineSlack. expire is called when a deadline has passed.
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

// remove removes a call, if present. The timer keeps running.
func (l *deadlineList) remove(k *call) {
	if !k.inDeadlines {
		return
	}
	l.link(k.prevDue, k.nextDue)
	k.inDeadlines, k.prevDue, k.nextDue = false, nil, nil
}

// link makes two calls neighbors; nil stands for the end of the list.
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

// expired removes and returns the calls whose deadline has passed, and restarts the timer.
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

// ctxWatchers notify calls without a goroutine when their contexts end. Calls with the same
// context share a watcher. The pending table's lock guards ctxWatchers.
type ctxWatchers map[<-chan struct{}]*ctxWatcher

// ctxWatcher watches the context of its calls.
type ctxWatcher struct {
	done  <-chan struct{}
	calls []*call     // call.watcherIndex is the index in calls
	stop  func() bool // ends the watch; nil until set
}

// watch notifies the call when its context ends.
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
	k.watcher, k.watcherIndex = w, int32(len(w.calls)) //nolint:gosec // a number of pending calls.
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

// contextEnded notifies the calls of a context.
func (p *pending) contextEnded(w *ctxWatcher) {
	p.mu.Lock()
	calls := w.calls
	w.calls = nil
	for _, k := range calls {
		k.watcher = nil
	}
	p.watchers.forget(w)
	p.mu.Unlock()
	for _, k := range calls {
		k.notify(eventCanceled)
	}
}

// forget removes a watcher. The caller holds the table's lock.
func (all ctxWatchers) forget(w *ctxWatcher) {
	if all[w.done] == w {
		delete(all, w.done)
	}
}

// remove removes a call from its watcher, if any. It returns the watcher's stop function after
// the last call, else nil. The caller holds the table's lock.
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
