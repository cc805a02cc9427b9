//go:build integration

package integration

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"testing"

	amqp "github.com/rabbitmq/amqp091-go"

	"rabbitmq-rpc/pkg/amqpx"
	"rabbitmq-rpc/test/internal/rig"
)

// TestBatchesThatNoClientOfOursSends: any message in the batch queue is dropped or answered,
// without harm to other calls.
func TestBatchesThatNoClientOfOursSends(t *testing.T) {
	t.Parallel()
	r := rig.New(t)
	server := r.Serve(rig.Methods{"echo": echo})
	inbox := r.Inbox()
	good := rig.BatchOf(rig.RawCall("good", "echo", "x"))
	for _, body := range [][]byte{
		nil, []byte("no batch"),
		{0xff, 0xff},
		make([]byte, 1<<20), bytes.Repeat([]byte{0xff}, 1<<20),
		good[:len(good)-1], append(bytes.Clone(good), 0x0a), append(bytes.Clone(good), 0x0a, 0xff, 0xff, 0xff, 0xff, 0x0f),
		rig.BatchOf([]byte{0x0a, 0x7f}), append(bytes.Clone(good), rig.BatchOf([]byte{0x0a})...),
		rig.Record(rig.Field{Number: 2, Value: "later"}), rig.Record(rig.Field{Number: 1, Value: uint64(7)}),
		rig.BatchOf(make([][]byte, 4097)...), rig.BatchOf(make([][]byte, 1<<20)...),
		binary.AppendUvarint([]byte{0x0a}, 1<<62), binary.AppendUvarint(nil, 1<<63),
		{0x0b, 0x0b, 0x0b},
		{0x0c},
	} {
		r.Publish(r.BatchQueue(), amqp.Publishing{ContentType: rig.CallsType, ReplyTo: inbox.Name, Body: body})
	}
	rig.Eventually(t, "all are dropped", func() bool {
		return inspect(t, r, r.BatchQueue()).Messages == 0 && server.Stats().InFlight == 0
	})
	if st := server.Stats(); st.OK+st.Failed+st.Panics != 0 {
		t.Errorf("server counted %+v, want nothing run", st)
	}
	if n := len(inbox.Responses); n != 0 {
		t.Errorf("%d answers", n)
	}
	laneServes(t, r, server)
}

// TestLargestBatch: all calls of the largest permitted batch, 4096 calls, are answered.
func TestLargestBatch(t *testing.T) {
	t.Parallel()
	r := rig.New(t)
	server := r.Serve(rig.Methods{"echo": echo})
	inbox := r.Inbox()
	const most = 4096
	var records [][]byte
	var ids []string
	for i := range most {
		id := fmt.Sprint("call ", i)
		ids = append(ids, id)
		records = append(records, rig.RawCall(id, "echo", id))
	}
	r.SendBatch(inbox.Name, records...)
	for id, a := range inbox.ResponsesTo(ids...) {
		if a.Body != id || a.Code != "" {
			t.Errorf("call %q got %+v", id, a)
		}
	}
	laneServes(t, r, server)
}

// TestRequestsInTheQueueOfBatches: a message of another content type in the batch queue is
// handled as a request.
func TestRequestsInTheQueueOfBatches(t *testing.T) {
	t.Parallel()
	r := rig.New(t)
	server := r.Serve(rig.Methods{"echo": echo})
	inbox := r.Inbox()
	for i, kind := range []string{"", "text/plain", rig.ResponsesType, rig.CallsType + " ", "application/vnd.amqpx.calls.v2"} {
		id := fmt.Sprint(i)
		r.Publish(r.BatchQueue(), amqp.Publishing{
			ContentType: kind, AppId: "echo", ReplyTo: inbox.Name, CorrelationId: id, Body: []byte("x"),
		})
		if got := inbox.ResponsesTo(id)[id]; got.Body != "x" || got.Code != "" {
			t.Errorf("content type %q: %+v", kind, got)
		}
	}
	r.Publish(r.BatchQueue(), amqp.Publishing{ContentType: "text/plain", Body: []byte("nonsense")})
	laneServes(t, r, server)
}

// TestResponsesOfBatchesToNowhere: no reply_to of a batch can do harm, because the sender
// chooses any address.
func TestResponsesOfBatchesToNowhere(t *testing.T) {
	t.Parallel()
	r := rig.New(t)
	server := r.Serve(rig.Methods{"echo": echo})
	targets := []string{
		"no such queue", "\xff\xfe\x00", "amq.rabbitmq.reply-to.garbage", "amq.rabbitmq.reply-to.",
		"amq.rabbitmq.reply-to.g2EB.key", r.Queue.Name, r.BatchQueue(),
	}
	for i, target := range targets {
		id := fmt.Sprint(i) // a repeated ID would get the stored response
		r.SendBatch(target, rig.RawCall(id, "echo", "x"), rig.RawCall(id, "unknown", ""), rig.RawCall("", "", ""))
	}
	// Responses received as requests get no responses themselves.
	rig.Eventually(t, "all are settled", func() bool {
		st := server.Stats()
		return st.OK == uint64(len(targets)-3) && st.InFlight == 0 && inspect(t, r, r.BatchQueue()).Messages == 0
	})
	laneServes(t, r, server)
}

// TestDrainOfABatchThatNoClientOfOursSends: a draining server requeues all calls not started
// yet, including calls of a foreign batch with contents unfit for a single message.
func TestDrainOfABatchThatNoClientOfOursSends(t *testing.T) {
	t.Parallel()
	header := func(name, value string) rig.Field {
		return rig.Field{Number: rig.CallHeader, Value: rig.Record(rig.Field{Number: 1, Value: name}, rig.Field{Number: 2, Value: value})}
	}
	for name, odd := range map[string][]rig.Field{
		"nothing odd":            nil,
		"header beyond a frame":  {header("h", string(make([]byte, 200<<10)))},
		"headers beyond a frame": {header("a", string(make([]byte, 50<<10))), header("b", string(make([]byte, 50<<10))), header("c", string(make([]byte, 50<<10)))},
		"carbon copies":          {header("CC", "x"), header("BCC", "x")},
		"reserved":               {header("rpc-timeout-ms", "soon"), header("rpc-idempotent", "?"), header("rpc-deliveries", "9")},
		"body beyond a frame":    {{Number: rig.CallBody, Value: make([]byte, 300<<10)}},
		"longest names":          {header(string(bytes.Repeat([]byte{'n'}, 255)), "x"), {Number: rig.CallKey, Value: string(bytes.Repeat([]byte{'k'}, 255))}},
		"budget beyond measure":  {{Number: rig.CallTimeout, Value: uint64(1<<64 - 1)}, {Number: rig.CallRetry, Value: uint64(1<<64 - 1)}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := rig.New(t)
			slow := hold()
			first := r.Serve(rig.Methods{"echo": echo, "slow": slow.handle}, amqpx.WithWorkers(1))
			inbox := r.Inbox()
			r.SendBatch(inbox.Name, rig.RawCall("slow", "slow", "x"), rig.RawCall("odd", "echo", "y", odd...), rig.RawCall("even", "echo", "z"))
			rig.Recv(t, slow.entered, "the first call to run")
			first.Stop()
			rig.Eventually(t, "the server drains", func() bool { return first.Status().State == amqpx.StateDraining })
			second := r.Serve(rig.Methods{"echo": echo})
			close(slow.release)
			got := inbox.ResponsesTo("slow", "odd", "even")
			if got["slow"].Body != "x" || got["even"].Body != "z" || got["odd"].Code != "" && got["odd"].Code != "invalid_argument" {
				t.Errorf("got %.300v", fmt.Sprint(got))
			}
			if inbox.Repeated != 0 {
				t.Errorf("%d calls were answered again", inbox.Repeated)
			}
			if err := first.Wait(); err != nil {
				t.Errorf("drain: %v", err)
			}
			if n := first.Stats().Reconnects; n != 0 {
				t.Errorf("the draining server counted %d reconnects", n)
			}
			laneServes(t, r, second)
		})
	}
}
