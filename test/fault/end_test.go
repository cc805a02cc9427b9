//go:build fault

package fault

import (
	"fmt"

	"rabbitmq-rpc/pkg/amqpx"
	"rabbitmq-rpc/test/fault/internal/report"
	"rabbitmq-rpc/test/internal/rig"
)

// queue returns the request queue.
func (s *stage) queue() amqpx.Queue {
	return amqpx.Queue{Name: queueName, Type: s.sc.load.kind}
}

// waiting returns the exact number of ready messages in a queue.
func (s *stage) waiting(queue string) int {
	s.t.Helper()
	conn := rig.Dial(s.t, s.tenant.URL())
	defer func() { _ = conn.Close() }()
	ch, err := conn.Channel()
	if err != nil {
		s.t.Fatal(err)
	}
	q, err := ch.QueueDeclarePassive(queue, true, false, false, false, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	return q.Messages
}

// end stops the clients, then the servers, and proves that no resource is left behind.
func (s *stage) end(row *report.Row) {
	s.t.Helper()
	defer func() {
		if s.t.Failed() {
			s.t.Logf("%s: counted last: %s", s.sc.name, row.Held)
		}
	}()
	s.served()
	for _, c := range s.clients { // more than were open at the end of the last fault
		c.untilStreamed(uint64(s.sc.load.streams) + 1)
	}
	rig.Eventually(s.t, "the broker counts what it did at first", func() bool {
		now := s.count()
		row.Held = fmt.Sprintf("%+v, at first %+v, %d clients killed", now, s.before, s.killed)
		if !s.within(now) {
			row.Held += fmt.Sprintf(", queues %v", s.manage.Queues(s.tenant.URL(), ""))
			return false
		}
		return true
	})
	for _, c := range s.clients {
		if err := c.stop(); err != nil {
			row.Leaks = append(row.Leaks, fmt.Sprintf("%s ended with %v", c.name, err))
		}
	}
	rig.Eventually(s.t, "no request waits", func() bool {
		return s.waiting(queueName) == 0 && s.waiting(queueName+".retry") == 0 && s.waiting(queueName+".streams") == 0 &&
			(s.sc.batch == amqpx.BatchOff || s.waiting(laneQueue) == 0)
	})
	for _, p := range s.servers {
		if err := p.stop(); err != nil {
			row.Leaks = append(row.Leaks, fmt.Sprintf("%s ended with %v", p.name, err))
		}
	}
	rig.Eventually(s.t, "nothing is left at the broker", func() bool {
		now := s.count()
		replies := s.manage.Queues(s.tenant.URL(), queueName+".reply.")
		row.Held = fmt.Sprintf("%+v, reply queues %v, %d clients killed", now, replies, s.killed)
		return now.Connections == 0 && now.Channels == 0 && len(replies) <= s.killed+s.orphans
	})
	for _, p := range append(s.clients, s.servers...) {
		switch {
		case p.summary == nil:
			row.Leaks = append(row.Leaks, p.name+" told nothing at its end")
		default:
			row.Leaks = append(row.Leaks, p.summary.Leaks()...)
		}
	}
}
