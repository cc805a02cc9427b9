package check

import (
	"maps"
	"slices"
	"time"

	"rabbitmq-rpc/test/fault/internal/ledger"
)

// storing bounds the time from the end of a handler until its response is stored: the library's bound
// on one step in the store.
const storing = time.Second

// Keys is the judgement of the idempotency keys that several calls have, with a store that all servers
// share.
type Keys struct {
	// Keys is the number of keys, Several the number of keys with responses from several servers.
	Keys    int `json:"keys"`
	Several int `json:"several"`
	// Started counts the executions of the handlers, Ended the executions that ran to the end.
	Started int `json:"started"`
	Ended   int `json:"ended"`
	// Unclaimed counts the executions that ran to the end although the claim may have been lost: the
	// server was killed about when it stored the response, or was stopped for longer than the
	// lease. Anonymous counts the executions for callers whose user the server did not know.
	Unclaimed int `json:"unclaimed"`
	Anonymous int `json:"anonymous"`
}

// Plus returns the sum of two judgements.
func (k Keys) Plus(other Keys) Keys {
	k.Keys += other.Keys
	k.Several += other.Several
	k.Started += other.Started
	k.Ended += other.Ended
	k.Unclaimed += other.Unclaimed
	k.Anonymous += other.Anonymous
	return k
}

// key combines the entries of an idempotency key.
type key struct {
	calls  []*call
	starts int         // of the handler
	done   []execution // to their ends
}

// execution is one execution of a handler that ran to its end.
type execution struct {
	node           string
	pid            int
	user, response string
	begun, ended   time.Time
}

func (b *Book) key(name string) *key {
	if b.keys == nil {
		b.keys = make(map[string]*key)
	}
	k := b.keys[name]
	if k == nil {
		k = new(key)
		b.keys[name] = k
	}
	return k
}

// addExecution adds the end of an execution, or of a process.
func (b *Book) addExecution(e ledger.Entry) {
	if e.Kind == ledger.Dead {
		if b.dead == nil {
			b.dead = make(map[int]time.Time)
		}
		b.dead[e.PID] = e.At
		return
	}
	k := b.key(e.Key)
	k.done = append(k.done, execution{node: e.Node, pid: e.PID, user: e.User, response: e.Sum, begun: e.At, ended: e.Until})
}

// has reports whether an execution had a response.
func (k *key) has(response string) bool {
	return slices.ContainsFunc(k.done, func(x execution) bool { return x.response == response })
}

// answeredByKey checks the truth of the result of a call with a shared key: its response is that of an
// execution for the key, for whichever call.
func (b *Book) answeredByKey(r *Result, id string, c *call, rules Rules) {
	k := b.key(c.key)
	k.calls = append(k.calls, c)
	if c.ends == 0 {
		return
	}
	if c.code == ledger.OK {
		r.OK++
		switch {
		case len(k.done) == 0:
			r.violate(NeverRan, id, "no handler ran to its end for the key %s", c.key)
		case !k.has(c.response):
			r.Mismatched++
			r.violate(Mismatched, id, "checksum %s, of no execution for the key %s", c.response, c.key)
		}
		return
	}
	r.Errors[c.code+", "+c.outcome]++
	if c.outcome == didNotRun && c.runs > 0 {
		r.WrongDidNotRun++
		r.violate(WrongDidNotRun, id, "a call with the key %s ran %d times: %s: %s", c.key, c.runs, c.code, c.text)
	}
	switch {
	case rules.AllOK:
		r.violate(Fails, id, "a call with the key %s: %s: %s", c.key, c.code, c.text)
	// A handler that takes longer than servers live between two kills meets the delivery limit.
	case rules.IdempotentOK && c.method != ledger.Held && !b.cutOff(c):
		r.violate(IdempotentFails, id, "a call with the key %s: %s: %s", c.key, c.code, c.text)
	}
}

// checkKeys checks that the handler of each key ran to its end at most once over all servers while its
// claims held, and that all callers got the response of this execution.
func (b *Book) checkKeys(r *Result, rules Rules) {
	for _, name := range slices.Sorted(maps.Keys(b.keys)) {
		k := b.keys[name]
		r.Keys.Keys++
		r.Keys.Started += k.starts
		r.Keys.Ended += len(k.done)
		if s := r.Shapes[ledger.KeyShape]; s != nil {
			s.Duplicates += max(k.starts-1, 0)
		}
		held, excused := 0, make(map[string]bool) // by response
		for _, x := range k.done {
			switch {
			case x.user == "": // the key belongs to the caller's reply_to
				r.Keys.Anonymous++
				excused[x.response] = true
			case b.unclaimed(&x, rules.Lease):
				r.Keys.Unclaimed++
				excused[x.response] = true
			default:
				held++
			}
		}
		if held > 1 {
			r.violate(KeyRanTwice, name, "%d times: %s", held, executions(k.done))
		}
		servers, responses := make(map[string]bool), make(map[string]bool)
		for _, c := range k.calls {
			if c.ends == 0 || c.code != ledger.OK {
				continue
			}
			servers[c.server] = true
			if k.has(c.response) && !excused[c.response] {
				responses[c.response] = true
			}
		}
		if len(servers) > 1 {
			r.Keys.Several++
		}
		if len(responses) > 1 {
			r.violate(KeyResponses, name, "%d responses to %d calls", len(responses), len(k.calls))
		}
	}
}

// unclaimed reports whether the claim of an execution may not have held until its response was stored:
// its process died at the end of the handler, or stood still for so long that the lease may have
// ended. A claim is renewed three times in a lease, so two thirds are left when a pause begins.
func (b *Book) unclaimed(x *execution, lease time.Duration) bool {
	if died, dead := b.dead[x.pid]; dead && died.Sub(x.ended).Abs() <= storing {
		return true
	}
	return slices.ContainsFunc(b.paused[x.node], func(p span) bool {
		return p.until.Sub(p.from) >= lease*2/3 && p.from.Before(x.ended.Add(storing)) && p.until.After(x.begun.Add(-storing))
	})
}

// executions describes executions for a violation.
func executions(all []execution) (text string) {
	slices.SortFunc(all, func(x, y execution) int { return x.begun.Compare(y.begun) })
	for i, x := range all {
		if i > 0 {
			text += ", "
		}
		text += x.node + " from " + x.begun.Format(time.RFC3339Nano) + " to " + x.ended.Format(time.RFC3339Nano)
	}
	return text
}
