package amqpx

import "context"

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
