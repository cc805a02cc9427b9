package amqpx

import (
	"fmt"
	"testing"
	"time"

	"rabbitmq-rpc/pkg/amqpx/internal/wire"
)

func BenchmarkNewID(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		_ = newID()
	}
}

func BenchmarkExecutions(b *testing.B) {
	e := newDedupCache(DefaultDedupBytes, DefaultDedupAge, false)
	m := &serverMethod{name: "b"}
	ids := make([]string, 1<<16)
	for i := range ids {
		ids[i] = fmt.Sprintf("7b1b2f0e-97d4-4a3b-bb6e-%012d", i)
	}
	n, body := 0, []byte("request")
	b.ReportAllocs()
	for b.Loop() {
		r := &invocation{request: &inboundRequest{method: m, in: &incoming{
			Request: wire.Request{ID: ids[n%len(ids)], Body: body, ReplyTo: "rpc_queue.reply", FollowsContract: true}, user: "guest",
		}}}
		now := time.Now()
		id, _ := r.request.in.identity()
		_, x := e.begin(r, id, now)
		e.end(x, response{body: []byte("b")}, true, true, now)
		n++
	}
}
