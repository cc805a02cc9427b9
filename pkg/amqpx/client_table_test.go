package amqpx

import (
	"math"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/google/uuid"

	"rabbitmq-rpc/pkg/amqpx/internal/wire"
)

// A callTable finds each of its calls, and only its calls, whatever the hashes.
func TestCallTable(t *testing.T) {
	t.Parallel()
	for name, hashes := range map[string]uint32{"all different": math.MaxUint32, "many equal": 3, "all equal": 0} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			random := rand.New(rand.NewPCG(1, 2))
			var table callTable
			var in, out []*call
			for range 3000 {
				if len(in) == 0 || random.IntN(3) > 0 {
					k := &call{}
					k.req.id, k.req.hash = newUUID(), random.Uint32()&hashes
					table.add(k)
					in = append(in, k)
					continue
				}
				i := random.IntN(len(in))
				table.remove(in[i])
				out = append(out, in[i])
				in[i] = in[len(in)-1]
				in = in[:len(in)-1]
			}
			found := func(k *call) *call {
				id := k.req.tableID()
				return table.find(k.req.hash, &id)
			}
			listed := map[*call]bool{}
			for k := range table.all {
				listed[k] = true
			}
			wantSame(t, "count", table.count, len(in))
			wantSame(t, "calls listed", len(listed), len(in))
			for _, k := range in {
				wantSame(t, "found", found(k) == k && listed[k], true)
			}
			for _, k := range out {
				wantSame(t, "removed call found", found(k) != nil, false)
			}
		})
	}
}

// The text of a correlation id is the text that was set, also if another text means the same UUID.
func TestCorrelationIDKeepsItsText(t *testing.T) {
	t.Parallel()
	own := newID()
	for text, isText := range map[string]bool{
		own: false, "00000000-0000-0000-0000-000000000000": false, strings.ToUpper(own): true,
		"": true, "7": true, "{" + own + "}": true, strings.ReplaceAll(own, "-", ""): true,
		strings.Repeat("-", 36): true, strings.Repeat("0", 36): true, own[:35] + "g": true, own[:34] + "-0": true,
	} {
		var r callRequest
		r.setID(text)
		wantSame(t, "text", r.text(), text)
		wantSame(t, text+" is kept as text", r.isText, isText)
		wantSame(t, "length", len(r.measured().ID), len(text))
		other := callRequest{id: uuid.UUID{1}}
		id := tableIDOf([]byte(text))
		wantSame(t, text+" found", r.has(&id), true)
		wantSame(t, text+" found for another", other.has(&id), false)
	}
}

// Middleware may set any correlation id, and the responses to these ids find their calls.
func TestPendingWithIDsOfMiddleware(t *testing.T) {
	t.Parallel()
	p := newPending(DefaultMaxInFlight, DefaultMaxInFlightBytes)
	upper := strings.ToUpper(newID())
	calls := map[string]*call{"7": pendingCall("7"), upper: pendingCall(upper), strings.ToLower(upper): pendingCall(strings.ToLower(upper))}
	for _, k := range calls {
		mustAdd(t, p, k)
	}
	for id, k := range calls {
		wantSame(t, "id", k.req.text(), id)
		p.matchAll([]wire.Response{{ID: []byte(id), Body: []byte(id)}}, nil, func(int) {})
		wantSame(t, "response", string(k.response.Body), id)
		wantSame(t, "second response", p.matchOne(responseDelivery(id, false)), verdictDuplicate)
	}
	wantSame(t, "pending", p.len(), 0)
}
