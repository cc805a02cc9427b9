package amqpx

import (
	"slices"
	"sync"
	"time"
)

// reply is what a request came to. On a server every duplicate of the request gets the
// same.
type reply struct {
	body   []byte
	failed *Error // nil for a result
	timing timing
}

// executions remembers which requests run, and for a while what they came to, so
// that a duplicate of a request joins the one that runs or gets the stored answer.
// What runs is bounded by the prefetch, what is stored by bytes and age. Safe for
// concurrent use.
type executions struct {
	maxBytes int
	maxAge   time.Duration

	mu     sync.Mutex // also of every method's known
	oldest *execution // of the stored ones, which are linked by next
	newest *execution
	bytes  int
	givenUp
}

// execution is one run of a handler. Ids are the callers' choice, so the same one of two
// methods is two requests, and each method knows its own.
type execution struct {
	method   *serverMethod
	id       string          // empty: nobody can ask for it
	job      *job            // the one that runs; nil afterwards
	others   []*job          // the duplicates that wait for it
	ctx      deadlineContext // of the handler
	canceled bool            // nobody waits for it any more
	stored   bool            // it has ended, and reply is what it came to
	reply    reply
	ended    time.Time // when the handler did
	next     *execution
}

// entryOverhead estimates what a stored answer takes beside its key and its body.
const entryOverhead = 256

func newExecutions(maxBytes int, maxAge time.Duration) *executions {
	return &executions{maxBytes: maxBytes, maxAge: maxAge}
}

// keyOf returns what a request is known by, or "". A correlation id is good for that
// only from callers that follow our contract: others may use it again.
func keyOf(in *incoming) string {
	if in.IdempotencyKey == "" && in.followsContract {
		return in.CorrelationID
	}
	return in.IdempotencyKey
}

// knows reports whether a job's request runs, or has a stored answer.
func (e *executions) knows(j *job) bool {
	id := keyOf(j.in)
	if id == "" || j.method == nil {
		return false
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.evict(time.Now())
	return j.method.known[id] != nil
}

// join has a job wait for the same request's run, if there is one.
func (e *executions) join(j *job) bool {
	id := keyOf(j.in)
	if id == "" || j.method == nil {
		return false
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	x := j.method.known[id]
	if x == nil || x.stored {
		return false
	}
	x.others = append(x.others, j)
	return true
}

// begin decides about a job: with an execution, run it and call end; with a reply,
// answer it with that; with neither, it waits for another that runs, unless its caller
// has given up, which canceled says.
func (e *executions) begin(j *job, now time.Time) (x *execution, again *reply, canceled bool) {
	x = &execution{method: j.method, id: keyOf(j.in), job: j}
	if x.id == "" {
		return x, nil, false
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.forgive(j.in.CorrelationID, now) {
		return nil, nil, true
	}
	e.evict(now)
	known := j.method.known[x.id]
	switch {
	case known == nil:
		j.method.known[x.id] = x
		return x, nil, false
	case known.stored:
		r := known.reply
		return nil, &r, false
	default:
		known.others = append(known.others, j)
		return nil, nil, false
	}
}

// end ends an execution and returns the job that ran and those that wait for its reply,
// which is stored if keep is true.
func (e *executions) end(x *execution, r reply, keep bool) (*job, []*job) {
	if x.id == "" {
		return x.job, nil
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	job, others := x.job, x.others
	x.job, x.others = nil, nil
	if !keep || x.size(r) > e.maxBytes {
		delete(x.method.known, x.id)
		return job, others
	}
	x.stored, x.reply = true, r
	if e.newest == nil {
		e.oldest = x
	} else {
		e.newest.next = x
	}
	e.newest = x
	e.bytes += x.size(r)
	e.evict(x.ended)
	return job, others
}

// evict forgets what is too old or too much. The caller holds mu.
func (e *executions) evict(now time.Time) {
	for x := e.oldest; x != nil && (e.bytes > e.maxBytes || now.Sub(x.ended) > e.maxAge); x = e.oldest {
		e.bytes -= x.size(x.reply)
		delete(x.method.known, x.id)
		if e.oldest = x.next; e.oldest == nil {
			e.newest = nil
		}
	}
}

func (x *execution) size(r reply) int {
	n := entryOverhead + len(x.id) + len(r.body)
	if r.failed != nil {
		n += len(r.failed.message)
	}
	return n
}

// replyAll answers the job that ran and the others with the same reply. Two jobs of one
// call, as after a loss of the link or a re-send, need one answer; it goes with the newer
// one, whose session is more likely to live.
func (s *Server) replyAll(ran *job, others []*job, r reply) {
	type caller struct{ replyTo, correlationID string }
	if len(others) == 0 {
		s.replyOne(ran, r)
		return
	}
	answered := make(map[caller]bool, len(others)+1)
	for _, j := range slices.Backward(append([]*job{ran}, others...)) {
		who := caller{j.in.replyTo, j.in.CorrelationID}
		if answered[who] {
			j.settled()
			continue
		}
		answered[who] = true
		s.replyOne(j, r)
	}
}

// replyOne answers a job, unless its caller has given up.
func (s *Server) replyOne(j *job, r reply) {
	if j.canceled {
		j.settled()
		return
	}
	s.reply(j, r)
}
