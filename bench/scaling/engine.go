package scaling

import "container/heap"

// The engine of the simulation: machines with processors, and actors, which are processes of
// Erlang, goroutines, or parts of these. Times are in microseconds.

// engine runs events in the order of their times, and those of the same time in the order in which
// they were added, so a simulation has one outcome.
type engine struct {
	now    float64
	events eventHeap
	added  uint64
}

type event struct {
	at  float64
	seq uint64
	do  func()
}

// after runs do after a time.
func (e *engine) after(delay float64, do func()) {
	e.added++
	heap.Push(&e.events, event{at: e.now + delay, seq: e.added, do: do})
}

// run runs the events until a time.
func (e *engine) run(until float64) {
	for len(e.events) > 0 && e.events[0].at <= until {
		next, _ := heap.Pop(&e.events).(event)
		e.now = next.at
		next.do()
	}
	e.now = until
}

type eventHeap []event

func (h eventHeap) Len() int { return len(h) }
func (h eventHeap) Less(i, j int) bool {
	if h[i].at != h[j].at {
		return h[i].at < h[j].at
	}
	return h[i].seq < h[j].seq
}
func (h eventHeap) Swap(i, j int) { h[i], h[j] = h[j], h[i] }

// Push implements heap.Interface.
func (h *eventHeap) Push(x any) {
	if e, ok := x.(event); ok {
		*h = append(*h, e)
	}
}

// Pop implements heap.Interface.
func (h *eventHeap) Pop() any {
	old := *h
	last := old[len(old)-1]
	old[len(old)-1] = event{}
	*h = old[:len(old)-1]
	return last
}

// machine has processors, for which its actors wait in turn.
type machine struct {
	e     *engine
	cores int
	speed float64 // of a processor; 1 is the speed at which costs were measured
	busy  int
	ready []*actor
	head  int
	used  float64 // processor time
}

// dispatch gives free processors to the actors that wait for one.
func (m *machine) dispatch() {
	for m.busy < m.cores && m.head < len(m.ready) {
		a := m.ready[m.head]
		m.ready[m.head] = nil
		if m.head++; m.head > 1024 && m.head*2 > len(m.ready) {
			m.ready = append(m.ready[:0], m.ready[m.head:]...)
			m.head = 0
		}
		m.busy++
		a.start()
	}
}

// item is a message on its way, or calls that have not become a message yet.
type item struct {
	calls  int
	more   bool    // of a message that another item has already begun
	due    float64 // mean of the times at which the calls were due
	client *simClient
	server *simServer
	do     func() // of a message between nodes
}

// quantum is how many items an actor handles before it leaves its processor to others.
const quantum = 32

// actor handles items one after the other, or, if it is wide, several at once.
type actor struct {
	on    *machine
	side  *account
	width int     // handled at once
	wake  float64 // cost of an item that finds the actor idle
	per   cost    // of each item
	then  func(item)

	inbox  []item
	active int  // queued or running
	idle   bool // the next run begins with a wake-up
	used   float64
}

// cost is the processor time of a message, and of each call in it.
type cost struct{ message, call float64 }

func (c cost) of(i item) float64 {
	if i.more {
		return c.call * float64(i.calls)
	}
	return c.message + c.call*float64(i.calls)
}

// each calls do with an item for every call of a message: goroutines of their own handle them.
func (i item) each(do func(item)) {
	for n := range i.calls {
		one := i
		one.calls, one.more = 1, n > 0
		do(one)
	}
}

// account adds up the processor time of a side.
type account struct{ used float64 }

// post hands the actor an item.
func (a *actor) post(i item) {
	a.inbox = append(a.inbox, i)
	if a.active < a.width {
		if a.active == 0 {
			a.idle = true
		}
		a.active++
		a.on.ready = append(a.on.ready, a)
		a.on.dispatch()
	}
}

// start runs the actor on a processor.
func (a *actor) start() {
	n := min(len(a.inbox), quantum)
	if a.width > 1 {
		n = min(n, max(len(a.inbox)/a.width, 1))
	}
	items := a.inbox[:n:n]
	if a.inbox = a.inbox[n:]; len(a.inbox) == 0 {
		a.inbox = nil
	}
	var took float64
	if a.idle {
		took, a.idle = a.wake, false
	}
	for _, i := range items {
		took += a.per.of(i)
	}
	a.used += took
	a.side.used += took
	a.on.used += took
	a.on.e.after(took/a.on.speed, func() {
		a.on.busy--
		for _, i := range items {
			if a.then != nil {
				a.then(i)
			}
		}
		if len(a.inbox) >= a.active {
			a.on.ready = append(a.on.ready, a)
		} else {
			a.active--
		}
		a.on.dispatch()
	})
}
