package amqpx

// maxDebts bounds how many debts of forgotten callers are kept, see debts.
const maxDebts = 2048

// debts holds the virtual times at which forgotten callers are due. A forgotten caller that
// returns while other callers wait gets its turn no earlier than if the server had kept the caller.
// The debts are void when a worker is free and no caller waits. debts keeps at most maxDebts: when
// half of the debts are new, the older half is dropped. The zero value is ready to use. The lock of
// callers guards debts.
type debts struct{ fresh, old map[callerID]int64 }

// add keeps the debt of a caller.
func (d *debts) add(id callerID, finish int64) {
	if len(d.fresh) >= maxDebts/2 {
		d.fresh, d.old = nil, d.fresh
	}
	if d.fresh == nil {
		d.fresh = make(map[callerID]int64)
	}
	d.fresh[id] = finish
}

// take returns and removes the debt of a caller; 0 if the caller has none.
func (d *debts) take(id callerID) int64 {
	finish := max(d.fresh[id], d.old[id])
	delete(d.fresh, id)
	delete(d.old, id)
	return finish
}

// clear drops all debts.
func (d *debts) clear() { *d = debts{} }

// readyHeap is a heap of the callers by the time at which they are due. It implements
// heap.Interface.
type readyHeap []*caller

func (h readyHeap) Len() int { return len(h) }

func (h readyHeap) Less(i, j int) bool {
	if h[i].finish != h[j].finish {
		return h[i].finish < h[j].finish
	}
	return h[i].turn < h[j].turn
}

func (h readyHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].place, h[j].place = i, j
}

// Push implements heap.Interface.
func (h *readyHeap) Push(x any) {
	k, _ := x.(*caller) // only callers are pushed
	k.place = len(*h)
	*h = append(*h, k)
}

// Pop implements heap.Interface.
func (h *readyHeap) Pop() any {
	last := len(*h) - 1
	k := (*h)[last]
	(*h)[last] = nil
	*h = (*h)[:last]
	k.place = -1
	return k
}
