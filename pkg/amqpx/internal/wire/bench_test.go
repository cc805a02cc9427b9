package wire

import (
	"fmt"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"rabbitmq-rpc/pkg/amqpx/internal/wire/wiretest"
)

// benchRecords is the number of records in a benchmark's batch.
const benchRecords = 100

// perRecord reports the cost per record of a batch.
func perRecord(b *testing.B) {
	b.Helper()
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/benchRecords, "ns/record")
}

func benchRequest() *Request {
	return &Request{Method: "b", Body: []byte("request"), ID: "7b1b2f0e-97d4-4a3b-bb6e-0d1f5f0a5c11"}
}

func benchResult() *Response { return &Response{Body: []byte("b"), Times: Times{1000, 1000}} }

func benchBatch() (requests, responses []byte) {
	for i := range benchRecords {
		req := benchRequest()
		req.ID = fmt.Sprintf("7b1b2f0e-97d4-4a3b-bb6e-%012d", i)
		requests = req.AppendTo(requests, time.Second)
		responses = benchResult().AppendTo(responses, req)
	}
	return requests, responses
}

func BenchmarkEncodeRequest(b *testing.B) {
	req := benchRequest()
	b.ReportAllocs()
	for b.Loop() {
		_ = req.Publishing("rpc_queue.reply", time.Second, false)
	}
}

func BenchmarkDecodeRequest(b *testing.B) {
	d := wiretest.Delivered(benchRequest().Publishing("rpc_queue.reply", time.Second, false))
	b.ReportAllocs()
	for b.Loop() {
		var r Request
		_ = r.Decode(d, "")
	}
}

func BenchmarkDecodeResponse(b *testing.B) {
	to := &Request{ID: "id", FollowsContract: true}
	failed := &Response{Failure: &Failure{Code: "not_found", Message: "no such thing", Ran: RanYes}}
	for name, p := range map[string]amqp.Publishing{"result": benchResult().Publishing(to, false), "error": failed.Publishing(to, false)} {
		b.Run(name, func(b *testing.B) {
			d := wiretest.Delivered(p)
			b.ReportAllocs()
			for b.Loop() {
				_ = DecodeResponse(d)
			}
		})
	}
}

func BenchmarkEncodeBatch(b *testing.B) {
	req, result := benchRequest(), benchResult()
	var body []byte
	b.Run("requests", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			body = body[:0]
			for range benchRecords {
				body = req.AppendTo(body, time.Second)
			}
		}
		perRecord(b)
	})
	b.Run("responses", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			body = body[:0]
			for range benchRecords {
				body = result.AppendTo(body, req)
			}
		}
		perRecord(b)
	})
}

func BenchmarkDecodeBatch(b *testing.B) {
	requests, responses := benchBatch()
	name := func([]byte) string { return "b" }
	b.Run("requests", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			records, err := AppendRecords(nil, requests)
			if err != nil {
				b.Fatal(err)
			}
			all := make([]Request, len(records))
			for i, record := range records {
				_ = all[i].DecodeRecord(record, "rpc_queue.reply", name)
			}
		}
		perRecord(b)
	})
	b.Run("responses", func(b *testing.B) {
		var all []Response
		b.ReportAllocs()
		for b.Loop() {
			var err error
			if all, err = DecodeResponses(responses, false, all[:0]); err != nil {
				b.Fatal(err)
			}
		}
		perRecord(b)
	})
}
