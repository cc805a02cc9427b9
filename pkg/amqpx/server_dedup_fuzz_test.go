package amqpx

import (
	"bytes"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"rabbitmq-rpc/pkg/amqpx/internal/wire"
)

// FuzzDedupCache compares a dedupCache with a model that searches lists. The first byte selects
// the bounds and how many hashes are equal; the others are operations.
func FuzzDedupCache(f *testing.F) {
	f.Add([]byte{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12})
	f.Add(bytes.Repeat([]byte{7, 0, 0, 64, 0}, 60))
	f.Fuzz(compareWithModel)
}

func TestDedupCacheAgreesWithAModel(t *testing.T) {
	t.Parallel()
	for seed := range uint64(48) {
		t.Run(strconv.FormatUint(seed, 10), func(t *testing.T) {
			t.Parallel()
			random := rand.NewChaCha8([32]byte{byte(seed)})
			operations := make([]byte, 3000)
			_, _ = random.Read(operations)
			operations[0] = byte(seed)
			compareWithModel(t, operations)
		})
	}
}

// A responseRing finds each response, and only responses that it holds, whatever the hashes.
func TestResponseRing(t *testing.T) {
	t.Parallel()
	for name, hashes := range map[string]uint64{"all different": math.MaxUint64, "many equal": 7 << 61, "at the end": 0x3ff << 54, "all equal": 0} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			random := rand.New(rand.NewPCG(1, 2))
			m, held, number := &serverMethod{}, map[uint64]storedResponse{}, uint64(0)
			var r responseRing
			grow := true
			for range 6000 {
				if r.count() > 500 || r.count() == 0 {
					grow = r.count() == 0
				}
				switch n := random.IntN(10); {
				case n < 5 == grow:
					s := storedResponse{origin: &requestOrigin{method: m}, idHash: random.Uint64() & hashes}
					if hashes == 7<<61 && random.IntN(2) == 0 {
						s.idHash = math.MaxUint64 // the search continues at the beginning of the index
					}
					number++
					s.more = &storedExtras{id: strconv.FormatUint(number, 10)}
					held[number] = s
					wantSame(t, "number", r.add(&s), number)
				case n == 9 && len(held) > 0:
					gone := r.first + random.Uint64N(r.end-r.first)
					if r.get(gone) != nil {
						r.remove(gone)
						delete(held, gone)
					}
				case !r.isEmpty():
					delete(held, r.first)
					r.removeFirst()
				}
			}
			for n := uint64(1); n <= number; n++ {
				id := requestID{id: strconv.FormatUint(n, 10)}
				s, ok := held[n]
				found, got := r.find(m, &id, s.idHash)
				wantSame(t, "found "+id.id, got != nil, ok)
				if ok {
					wantSame(t, "number found", found, n)
				}
			}
			for !r.isEmpty() {
				r.removeFirst()
			}
			wantSame(t, "bytes", r.bytes, 0)
			wantSame(t, "left in the index", slices.ContainsFunc(r.index, func(e indexElement) bool { return e.place != 0 }), false)
		})
	}
}

// dedupModel does the same as a dedupCache, and searches lists.
type dedupModel struct {
	maxBytes int
	maxAge   time.Duration
	runs     []*modelRun           // running, then ended in the order of their ends
	calls    map[callKey]*modelRun // nil without scopes of the application
	canceled map[callKey]time.Time // until when a canceled call is remembered
}

// modelRun is one run of a handler in a dedupModel.
type modelRun struct {
	first   *modelRequest
	running bool
	known   bool // running, or stored and not removed
	waiters []*modelRequest
	ended   time.Time
	ending  response
	over    bool // every caller has canceled
}

// modelRequest is one request in both.
type modelRequest struct {
	real                    *invocation
	id                      identity
	execution               *execution // for which the real request runs or waits
	ran, waitsFor           *modelRun
	takes, silent, canceled bool
}

func (r *modelRequest) in() *incoming { return r.real.request.in }

// size is the size of a response that is stored, or whose entry is still there.
func (x *modelRun) size() int {
	if x.ended.IsZero() {
		return 0
	}
	if !x.known {
		return entryOverhead
	}
	return entryOverhead + len(x.first.id.scope) + len(x.first.id.id) + len(x.first.in().ReplyTo) + len(x.ending.body)
}

func (m *dedupModel) bytes() (n int) {
	for _, x := range m.runs {
		n += x.size()
	}
	return n
}

func (m *dedupModel) find(id identity, method *serverMethod) *modelRun {
	i := slices.IndexFunc(m.runs, func(x *modelRun) bool {
		return x.known && x.first.id.requestID == id.requestID && x.first.real.request.method == method
	})
	if i < 0 {
		return nil
	}
	return m.runs[i]
}

func (x *modelRun) isRepeatedBy(r *modelRequest) bool {
	return x.first.in().ReplyTo == r.in().ReplyTo || x.first.id.shared && r.id.shared ||
		r.in().Resent && bytes.Equal(x.first.in().Body, r.in().Body)
}

func (m *dedupModel) evict(now time.Time) {
	for {
		i := slices.IndexFunc(m.runs, func(x *modelRun) bool { return !x.ended.IsZero() })
		if i < 0 {
			return
		}
		x := m.runs[i]
		if x.known && m.bytes() <= m.maxBytes && now.Sub(x.ended) <= m.maxAge {
			return
		}
		m.forget(x)
		m.runs = slices.Delete(m.runs, i, i+1)
	}
}

func (m *dedupModel) forget(x *modelRun) {
	x.known = false
	if call := x.first.real.call(); m.calls[call] == x {
		delete(m.calls, call)
	}
}

func (m *dedupModel) begin(r *modelRequest, now time.Time) (dedupDecision, *modelRun) {
	call := r.real.call()
	until := m.canceled[call]
	delete(m.canceled, call)
	if now.Before(until) {
		return dedupCanceled, nil
	}
	m.evict(now)
	x := m.find(r.id, r.real.request.method)
	if x != nil && x == r.ran && !x.running {
		m.forget(x)
		x = nil
	}
	if x != nil && m.maxBytes > 0 && !(x.running && x.first == r) && x.isRepeatedBy(r) {
		switch {
		case !bytes.Equal(x.first.in().Body, r.in().Body):
			return dedupConflict, nil
		case !x.running:
			return dedupReplay, x
		}
		x.waiters = append(x.waiters, r)
		if m.calls != nil && m.calls[call] == nil {
			m.calls[call] = x
		}
		r.waitsFor = x
		return dedupWait, x
	}
	if r.ran == nil && r.real.request.method.atMostOnce && r.in().Redelivered {
		return dedupMayRan, nil
	}
	r.ran = &modelRun{first: r, running: true, known: x == nil}
	m.runs = append(m.runs, r.ran)
	if m.calls != nil && r.ran.known {
		m.calls[call] = r.ran
	}
	return dedupRun, r.ran
}

func (m *dedupModel) unwait(r *modelRequest, x *modelRun) {
	r.waitsFor = nil
	if call := r.real.call(); m.calls[call] == x && (!x.known || call != x.first.real.call()) {
		delete(m.calls, call)
	}
}

func (m *dedupModel) end(x *modelRun, body []byte, final, shared bool, now time.Time) (silent bool) {
	responds, ran := map[string]bool{}, x.first.real.call()
	address := func(r *invocation) string { return fmt.Sprint(r.call(), r.request.in.ReplyTo) }
	for _, w := range slices.Backward(x.waiters) {
		if w.takes = shared || w.real.call() == ran; w.takes {
			w.silent = responds[address(w.real)]
			responds[address(w.real)] = true
		}
	}
	for _, w := range x.waiters {
		m.unwait(w, x)
	}
	x.running, x.waiters, x.ending = false, nil, response{body: body}
	m.runs = slices.DeleteFunc(m.runs, func(o *modelRun) bool { return o == x })
	if x.known {
		x.ended = now
		if final && x.size() <= m.maxBytes {
			m.runs = append(m.runs, x)
			m.evict(now)
		} else {
			m.forget(x)
		}
	}
	return responds[address(x.first.real)]
}

func (x *modelRun) abandon() *invocation {
	if x.over || !x.first.canceled || slices.ContainsFunc(x.waiters, func(w *modelRequest) bool { return !w.canceled }) {
		return nil
	}
	x.over = true
	return x.first.real
}

func (m *dedupModel) leave(r *modelRequest) *invocation {
	x := r.waitsFor
	x.waiters = slices.DeleteFunc(x.waiters, func(w *modelRequest) bool { return w == r })
	m.unwait(r, x)
	return x.abandon()
}

func (m *dedupModel) has(r *modelRequest, now time.Time) bool {
	id, ok := r.in().identity()
	if !ok || m.maxBytes == 0 {
		return false
	}
	m.evict(now)
	x := m.find(id, r.real.request.method)
	if m.calls != nil {
		x = m.calls[r.in().callKey()]
	}
	asked := *r
	asked.id = id
	return x != nil && bytes.Equal(x.first.in().Body, r.in().Body) && x.isRepeatedBy(&asked)
}

func (m *dedupModel) cancel(r *modelRequest) (end []*invocation) {
	call := r.in().callKey()
	if call.replyTo == "" {
		if len(call.id) < wire.UniqueID {
			return nil
		}
		call.replyTo = wire.DirectReplyTo
	}
	id := identity{requestID: requestID{scope: r.in().user, id: r.in().key()}}
	without := id
	if len(id.id) < wire.UniqueID {
		id.replyTo = r.in().ReplyTo
	}
	x := m.find(id, r.real.request.method)
	if x == nil {
		x = m.find(without, r.real.request.method)
	}
	if m.calls != nil {
		x = m.calls[call]
	}
	if x != nil && !x.running {
		return nil
	}
	found := false
	if x != nil {
		for _, w := range append([]*modelRequest{x.first}, x.waiters...) {
			if w.real.call() != call {
				continue
			}
			found = true
			if !w.canceled && w != x.first {
				end = append(end, w.real)
			}
			w.canceled = true
		}
	}
	if !found {
		if now := time.Now(); !now.Before(m.canceled[call]) {
			m.canceled[call] = now.Add(givenUpAge)
		}
		return nil
	}
	if unwanted := x.abandon(); unwanted != nil {
		end = append(end, unwanted)
	}
	return end
}

// comparison does the same with a dedupCache and a dedupModel.
type comparison struct {
	*testing.T

	cache    *dedupCache
	model    *dedupModel
	methods  []*serverMethod
	bytes    []byte // the next choices
	requests []*modelRequest
}

func compareWithModel(t *testing.T, operations []byte) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		c := &comparison{T: t, bytes: operations, methods: []*serverMethod{{name: "a"}, {name: "b", atMostOnce: true}}}
		scopes := c.choose(2) == 1
		maxBytes := []int{1 << 20, 2000, 10 * entryOverhead, 0}[c.choose(4)]
		c.cache = newDedupCache(maxBytes, time.Minute, scopes)
		c.cache.hashMask = []uint64{math.MaxUint64, 3 << 62, 0}[c.choose(3)]
		c.model = &dedupModel{maxBytes: maxBytes, maxAge: time.Minute, canceled: map[callKey]time.Time{}}
		if scopes {
			c.model.calls = map[callKey]*modelRun{}
		}
		for len(c.bytes) > 0 && !t.Failed() {
			c.step()
		}
	})
}

// choose returns a number below n from the operations.
func (c *comparison) choose(n int) int {
	if len(c.bytes) == 0 {
		return 0
	}
	b := c.bytes[0]
	c.bytes = c.bytes[1:]
	return int(b) % n
}

// request returns a new request.
func (c *comparison) request() *modelRequest {
	ids := []string{"1", "2", "0123456789abcdef", "0123456789abcdeg", "0123456789abcdeh"}
	in := &incoming{Request: wire.Request{
		ID: ids[c.choose(len(ids))], FollowsContract: true, Resent: c.choose(3) == 0, Body: []byte{byte(c.choose(8) / 7)},
		ReplyTo: []string{rawQueue, otherReplies, wire.DirectReplyTo + ".a", wire.DirectReplyTo + ".b", ""}[c.choose(5)],
	}, user: []string{"", "user"}[c.choose(2)]}
	in.Key, in.Redelivered = []string{"", "", "key"}[c.choose(3)], in.Resent
	r := newInvocation(&inboundRequest{method: c.methods[c.choose(2)], in: in, delivery: &delivery{}})
	m := &modelRequest{real: r, id: r.id}
	if c.model.calls != nil && c.choose(2) == 1 {
		m.id = identity{requestID{kind: scopeApplication, scope: "tenant", id: r.id.id}, true}
	}
	return m
}

// pick returns one of the requests that match, or nil.
func (c *comparison) pick(matches func(*modelRequest) bool) *modelRequest {
	all := slices.DeleteFunc(slices.Clone(c.requests), func(r *modelRequest) bool { return !matches(r) })
	if len(all) == 0 {
		return nil
	}
	return all[c.choose(len(all))]
}

func (c *comparison) step() {
	switch c.choose(8) {
	case 0, 1, 2:
		if r := c.request(); r.real.identified || r.id.kind == scopeApplication {
			c.requests = append(c.requests, r)
			c.begin(r)
		}
	case 3, 4:
		if r := c.pick(func(r *modelRequest) bool { return r.ran != nil && r.ran.running }); r != nil {
			c.end(r)
		}
	case 5:
		if r := c.pick(func(r *modelRequest) bool { return r.ran != nil && !r.ran.running && r.waitsFor == nil }); r != nil {
			c.begin(r) // by middleware, again
		}
	case 6:
		switch r := c.pick(func(r *modelRequest) bool { return r.waitsFor != nil }); {
		case r != nil && c.choose(3) == 0:
			unwanted := c.cache.leave(r.real, r.execution)
			wantSame(c.T, "unwanted", unwanted, c.model.leave(r))
		default:
			r := c.request()
			if ends, want := c.cache.cancel(r.real.request.method, r.in(), time.Now()), c.model.cancel(r); !slices.Equal(ends, want) {
				c.Errorf("canceled: got %d requests, want %d, or others", len(ends), len(want))
			}
		}
	default:
		r := c.request()
		wantSame(c.T, "has", c.cache.has(r.real.request), c.model.has(r, time.Now()))
		pass(time.Duration(c.choose(20)) * time.Second)
	}
	wantSame(c.T, "bytes", c.cache.stored.bytes, c.model.bytes())
	for _, r := range c.requests {
		wantSame(c.T, "canceled", r.real.canceled, r.canceled)
	}
}

func (c *comparison) begin(r *modelRequest) {
	decision, x := c.cache.begin(r.real, r.id, time.Now())
	want, wantX := c.model.begin(r, time.Now())
	wantSame(c.T, "decision", decision, want)
	switch {
	case decision != want:
	case decision == dedupReplay:
		wantSame(c.T, "response", string(x.response.body), string(wantX.ending.body))
	case decision == dedupWait:
		r.execution = x
		wantSame(c.T, "runner", x.runner, wantX.first.real)
	case decision == dedupRun:
		r.execution = x
		wantSame(c.T, "known", x.known, wantX.known)
	default:
	}
}

func (c *comparison) end(r *modelRequest) {
	waiters := slices.Clone(r.ran.waiters)
	body := bytes.Repeat([]byte{byte(c.choose(256))}, []int{1, 1, 100, 1000, 3000}[c.choose(5)])
	final, shared := c.choose(4) > 0, c.choose(4) > 0
	silent := c.cache.end(r.real.ran, response{body: body}, final, shared, time.Now())
	wantSame(c.T, "silent", silent, c.model.end(r.ran, body, final, shared, time.Now()))
	for _, w := range waiters {
		wantSame(c.T, "takes", w.real.takes, w.takes)
		wantSame(c.T, "waiter is silent", w.real.silent.Load(), w.silent)
		wantSame(c.T, "response of a waiter", string(w.execution.response.body), string(body))
	}
}
