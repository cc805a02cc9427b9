package amqpx

import (
	"fmt"
	"testing"
	"time"
)

// benchCalls is the number of calls in a benchmark's batch.
const benchCalls = 100

// perCall reports the cost per call of a batch.
func perCall(b *testing.B) {
	b.Helper()
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/benchCalls, "ns/call")
}

func benchBatch() (calls, answers []byte) {
	for i := range benchCalls {
		req := &Request{Method: "b", Body: []byte("request"), CorrelationID: fmt.Sprintf("7b1b2f0e-97d4-4a3b-bb6e-%012d", i)}
		calls = appendCall(calls, req, time.Second, false, 0)
		answers = appendAnswer(answers, &incoming{Request: *req}, reply{body: []byte("b"), timing: timing{1000, 1000}})
	}
	return calls, answers
}

func BenchmarkEncodeBatch(b *testing.B) {
	req := &Request{Method: "b", Body: []byte("request"), CorrelationID: "7b1b2f0e-97d4-4a3b-bb6e-0d1f5f0a5c11"}
	in := &incoming{Request: *req}
	var body []byte
	b.Run("calls", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			body = body[:0]
			for range benchCalls {
				body = appendCall(body, req, time.Second, false, 0)
			}
		}
		perCall(b)
	})
	b.Run("answers", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			body = body[:0]
			for range benchCalls {
				body = appendAnswer(body, in, reply{body: []byte("b"), timing: timing{1000, 1000}})
			}
		}
		perCall(b)
	})
}

func BenchmarkDecodeBatch(b *testing.B) {
	calls, answers := benchBatch()
	name := func([]byte) string { return "b" }
	b.Run("calls", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			records, err := appendRecords(nil, calls)
			if err != nil {
				b.Fatal(err)
			}
			all := make([]incoming, len(records))
			for i, record := range records {
				_ = decodeCall(&all[i], record, "rpc_queue.reply", name)
			}
		}
		perCall(b)
	})
	b.Run("answers", func(b *testing.B) {
		var all []batchedAnswer
		b.ReportAllocs()
		for b.Loop() {
			var err error
			if all, err = decodeAnswers(answers, false, all[:0]); err != nil {
				b.Fatal(err)
			}
		}
		perCall(b)
	})
}

func BenchmarkNewID(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		_ = newID()
	}
}

func BenchmarkExecutions(b *testing.B) {
	e := newDedupCache(DefaultReplayBytes, DefaultReplayAge, false)
	m := &serverMethod{name: "b", known: make(executionTable)}
	ids := make([]string, 1<<16)
	for i := range ids {
		ids[i] = fmt.Sprintf("7b1b2f0e-97d4-4a3b-bb6e-%012d", i)
	}
	n, body := 0, []byte("request")
	b.ReportAllocs()
	for b.Loop() {
		r := &invocation{job: &job{method: m, in: &incoming{
			Request: Request{CorrelationID: ids[n%len(ids)], User: "guest", Body: body}, replyTo: "rpc_queue.reply", followsContract: true,
		}}}
		now := time.Now()
		id, _ := r.job.in.identity()
		_, x := e.begin(r, id, now)
		e.end(x, response{body: []byte("b")}, true, true, now)
		n++
	}
}
