//go:build fault

package fault

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"rabbitmq-rpc/pkg/amqpx"
	"rabbitmq-rpc/test/fault/internal/check"
	"rabbitmq-rpc/test/fault/internal/ledger"
	"rabbitmq-rpc/test/internal/rig"
)

// laneQueue is the batch queue.
const laneQueue = queueName + ".batch"

// laneScenarios returns faults of batching. Their many callers fill the batches.
func laneScenarios() []scenario {
	const lasts = 20 * time.Second
	crowd := with(func(l *load) { l.callers = 128 })
	lasting := with(func(l *load) { l.callers, l.kind, l.persistent = 128, amqpx.QueueQuorum, true })
	all := []scenario{
		{
			name: "lane-poison", about: "a request that kills every server that runs it, among 64 that travel together",
			fault: poisonTogether, lasts: lasts, short: true, rules: check.Rules{Deliveries: deliveries},
		},
		{
			name: "lane-kill-server", about: "SIGKILL to a server under 128 callers of each client",
			load: crowd, fault: killServer, lasts: lasts,
		},
		{name: "lane-queue-deleted", about: "the queue of batches deleted under its consumers", fault: deleteQueues(laneQueue), lasts: lasts},
		{
			name: "lane-deserted", about: "every server replaced by one that takes no batches, and back",
			fault: desertLane, lasts: lasts, short: true,
		},
		{
			name: "lane-broker-restart", about: "the broker stopped and started under 128 callers of each client",
			load: crowd, fault: outage("stop"), times: 3,
		},
		{
			name: "lane-broker-kill", about: "SIGKILL to the broker under the same, persistent in a quorum queue",
			load: lasting, fault: outage("kill"), times: 3,
		},
	}
	for i := range all {
		all[i].lane = true
		// Deleting a queue also deletes requests confirmed by the broker.
		all[i].rules.IdempotentOK = all[i].name != "lane-queue-deleted"
	}
	return all
}

// desertLane replaces the servers in turn, and expects batching to end and to resume.
func desertLane(s *stage) {
	s.t.Helper()
	for _, p := range s.servers {
		p.becomes("-batch=" + string(amqpx.BatchOff))
	}
	const noticed = 2500 * time.Millisecond // clients check once a second
	s.wait(noticed)
	var before []uint64
	for _, c := range s.clients {
		before = append(before, c.inBatches())
	}
	s.served()
	for i, c := range s.clients {
		if got := c.inBatches(); got != before[i] {
			s.t.Errorf("%s sent %d calls in batches, which no server takes", c.name, got-before[i])
		}
	}
	for _, p := range s.servers {
		p.becomes("-batch=" + string(amqpx.BatchAuto))
	}
	for _, c := range s.clients {
		c.untilBatched(1)
	}
}

// call makes a call of the suite itself, with entries in the ledger.
func (s *stage) call(ctx context.Context, client *amqpx.Client, id, method string, opts ...amqpx.CallOption) error {
	deadline, _ := ctx.Deadline()
	body := []byte(id + " 0s")
	var info amqpx.CallInfo
	started := s.book.Write(ledger.Entry{
		Kind: ledger.Start, At: time.Now(), ID: id, Method: method, Deadline: deadline, Sum: ledger.Sum(body),
	})
	response, err := client.Call(ctx, method, body, append(opts, amqpx.WithCallInfo(&info))...)
	e := ledger.Entry{
		Kind: ledger.End, At: time.Now(), ID: id, Code: ledger.OK,
		Outcome: amqpx.OutcomeOf(err).String(), Attempts: info.Attempts, Sum: ledger.Sum(response),
	}
	if err != nil {
		e.Code, e.Text, e.Sum = string(amqpx.CodeOf(err)), err.Error(), ""
	}
	return errors.Join(err, started, s.book.Write(e))
}

// buried expects the error of a dead-lettered call, and an additional dead letter.
func (s *stage) buried(err error, before int) {
	s.t.Helper()
	if amqpx.CodeOf(err) != amqpx.CodeInternal || amqpx.OutcomeOf(err) != amqpx.MayHaveRun {
		s.t.Errorf("the killer's caller got %v, want %s and %q", err, amqpx.CodeInternal, amqpx.MayHaveRun)
	}
	if got := s.waiting(queueName + ".dead"); got != before+1 {
		s.t.Errorf("%d dead letters, want %d", got, before+1)
	}
}

// poisonTogether makes a call that kills its server while 64 other calls wait to be sent. The
// other calls must succeed, and only the killer is dead-lettered.
func poisonTogether(s *stage) {
	s.t.Helper()
	dead := s.waiting(queueName + ".dead")
	client, err := amqpx.NewClient(s.tenant.URL(), amqpx.WithQueue(s.queue()), amqpx.WithBatch(s.sc.batch))
	if err != nil {
		s.t.Fatal(err)
	}
	ctx := rig.Patience(s.t)
	const mates, most = 64, 100
	wave := func(number int, killer bool) (killed error) {
		var all sync.WaitGroup
		for i := range mates {
			all.Go(func() {
				id := fmt.Sprintf("mate-%d-%d-%d", s.injected, number, i)
				if err := s.call(ctx, client, id, ledger.Echo); err != nil {
					s.t.Errorf("%s got %v", id, err)
				}
			})
		}
		if killer {
			killed = s.call(ctx, client, fmt.Sprintf("killer-%d", s.injected), ledger.Kill)
		}
		all.Wait()
		return killed
	}
	number := 0
	for ; client.Stats().Batched == 0 && number < most; number++ {
		_ = wave(number, false)
	}
	before := client.Stats().Batched
	s.buried(wave(number, true), dead)
	if got := client.Stats().Batched - before; got < mates/2 {
		s.t.Errorf("%d calls of %d travelled together with the killer or each other", got, mates+1)
	}
	if err := client.Close(ctx); err != nil {
		s.t.Error(err)
	}
	s.record(ledger.Entry{Kind: ledger.Left, Node: "suite", At: time.Now()})
}
