//go:build fault

package fault

import (
	"fmt"
	"syscall"
	"time"

	"rabbitmq-rpc/pkg/amqpx"
	"rabbitmq-rpc/test/fault/internal/check"
	"rabbitmq-rpc/test/fault/internal/ledger"
	"rabbitmq-rpc/test/internal/rig"
)

// processScenarios returns the faults of the processes themselves.
func processScenarios() []scenario {
	const lasts = 20 * time.Second
	all := []scenario{
		{name: "kill-server", about: "SIGKILL to a server, started again by its supervisor", fault: killServer, short: true},
		{
			name: "kill-overloaded", about: "SIGKILL to a server, all of which are busier than half of the calls are patient",
			load: with(func(l *load) {
				l.mix, l.callers, l.workers, l.keyed = "slow:1", 5, 2, 0
				l.longest, l.impatience = 200*time.Millisecond, 110*time.Millisecond
			}),
			fault: killServer, gap: 300 * time.Millisecond,
		},
		{name: "kill-client", about: "SIGKILL to a client, another takes its place", fault: killClient, short: true},
		{name: "stop-server", about: "SIGSTOP to a server for 0.5 to 1 s", fault: freeze(server, time.Second)},
		{name: "stop-client", about: "SIGSTOP to a client for 0.5 to 1 s", fault: freeze(client, time.Second), short: true},
		{
			name: "stop-server-long", about: "SIGSTOP to a server until the broker gave it up",
			fault: freeze(server, 16*time.Second), lasts: 2 * lasts,
		},
		{
			name: "stop-client-long", about: "SIGSTOP to a client until the broker gave it up",
			fault: freeze(client, 16*time.Second), lasts: 2 * lasts,
		},
		{name: "drain", about: "SIGTERM to a server under load, started again", fault: drain, short: true},
		{
			name: "rolling-restart", about: "SIGTERM to each of 3 servers in turn, under load",
			load: with(func(l *load) { l.servers = 3 }), fault: roll,
			rules: check.Rules{AllOK: true, IdempotentOK: true},
		},
		{name: "forced", about: "two SIGTERM to a server under load: it ends at once", fault: force},
		{name: "close-client", about: "two SIGTERM to a client under load: its calls end at once", fault: closeClient},
		{
			name: "poison", about: "a request that kills every server that runs it", fault: poison, short: true,
			rules: check.Rules{Deliveries: deliveries},
		},
	}
	for i := range all {
		if all[i].lasts == 0 {
			all[i].lasts = lasts
		}
		all[i].rules.IdempotentOK = all[i].name != "close-client"
	}
	return all
}

func killServer(s *stage) { s.one(s.servers).dies(syscall.SIGKILL) }

// deliveries is the library's default delivery limit.
const deliveries = 5

// poison makes a call that kills its server, and expects a dead-lettered request and a coded
// error for its caller.
func poison(s *stage) {
	s.t.Helper()
	dead := s.waiting(queueName + ".dead")
	client, err := amqpx.NewClient(s.tenant.URL(), amqpx.WithQueue(s.queue()), amqpx.WithBatch(s.sc.batch))
	if err != nil {
		s.t.Fatal(err)
	}
	ctx := rig.Patience(s.t)
	s.buried(s.call(ctx, client, fmt.Sprintf("killer-%d", s.injected), ledger.Kill), dead)
	if err := client.Close(ctx); err != nil {
		s.t.Error(err)
	}
}

func killClient(s *stage) { s.killClient(s.one(s.clients)) }

func drain(s *stage) { s.one(s.servers).dies(syscall.SIGTERM) }

func force(s *stage) { s.one(s.servers).dies(syscall.SIGTERM, syscall.SIGTERM) }

func roll(s *stage) {
	for _, p := range s.servers {
		p.dies(syscall.SIGTERM)
	}
}

// freeze returns a fault: a process is stopped for up to d.
func freeze(at side, d time.Duration) func(*stage) {
	return func(s *stage) {
		s.freeze(s.one(s.at(at)), d/2+time.Duration(s.random.Int64N(int64(d/2))))
	}
}

func closeClient(s *stage) {
	p := s.one(s.clients)
	p.dies(syscall.SIGTERM, syscall.SIGTERM)
	if p.err != nil {
		s.t.Errorf("%s ended with %v", p.name, p.err)
	}
	s.replaceClient(p)
}
