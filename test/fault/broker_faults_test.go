//go:build fault

package fault

import (
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"rabbitmq-rpc/pkg/amqpx"
	"rabbitmq-rpc/test/fault/internal/check"
	"rabbitmq-rpc/test/fault/internal/ledger"
	"rabbitmq-rpc/test/internal/rig"
)

// brokerScenarios returns the faults of the broker.
func brokerScenarios() []scenario {
	const lasts = 20 * time.Second
	// Restarts take most of their time to boot, and the figure of recovery needs many samples.
	const restarts = 10
	quorum := with(func(l *load) { l.kind = amqpx.QueueQuorum })
	persistent := with(func(l *load) { l.persistent = true })
	all := []scenario{
		{name: "broker-restart", about: "the broker stopped and started", fault: outage("stop"), times: restarts},
		{name: "broker-kill", about: "SIGKILL to the broker, started again", fault: outage("kill"), times: restarts, short: true},
		{
			name: "broker-kill-persistent", about: "the same with persistent messages",
			load: persistent, fault: outage("kill"), times: 2,
		},
		{
			name: "broker-kill-quorum", about: "the same with a quorum queue",
			load: quorum, fault: outage("kill"), times: 2,
		},
		{name: "kill-server-quorum", about: "SIGKILL to a server of a quorum queue", load: quorum, fault: killServer, lasts: lasts},
		{
			name: "poison-quorum", about: "a request that kills every server that runs it, from a quorum queue",
			load: quorum, fault: poison, lasts: lasts, rules: check.Rules{Deliveries: deliveries},
		},
		{name: "broker-pause", about: "SIGSTOP to the broker for 0.5 to 1 s", fault: frozen(time.Second), lasts: lasts},
		{
			name: "broker-pause-long", about: "SIGSTOP to the broker for 3 heartbeats",
			fault: frozenLong, notice: noticeWithin, lasts: lasts,
		},
		{name: "close-connections", about: "`rabbitmqctl close_all_connections`", fault: closeConnections, lasts: lasts},
		{name: "queue-deleted", about: "the request queue deleted under its consumers", fault: deleteQueues(queueName), lasts: lasts},
		{name: "reply-queues-deleted", about: "the reply queues deleted under the clients", fault: deleteQueues(queueName + ".reply."), lasts: lasts},
		{name: "permissions", about: "permissions revoked, connections closed, given back after 2 s", fault: revoke, lasts: 2 * lasts},
		{name: "vhost", about: "the virtual host deleted, and made again after 1 s", fault: removeVhost, lasts: 2 * lasts},
		{
			name: "consumer-timeout", about: "`consumer_timeout` 1 s, a server stopped for 2 s or more",
			// Handlers of held keys would take longer than the broker waits for acknowledgements.
			load:   with(func(l *load) { l.keyed = 0 }),
			before: shortConsumerTimeout, fault: freeze(server, 4*time.Second), lasts: lasts,
		},
		{
			name: "reply-queues-expire", about: "the reply queues expire after 1 s, the clients cut off for 3 s",
			before: expireReplies, fault: cut(3*time.Second, client), lasts: lasts,
		},
	}
	for i := range all {
		// Deleting a queue also deletes requests confirmed by the broker.
		all[i].rules.IdempotentOK = all[i].name != "queue-deleted"
	}
	return append(all, alarmScenarios()...)
}

// containerScenarios returns the faults of a broker in a container.
func containerScenarios() []scenario {
	if rig.BrokerKind() != "engine" {
		return nil
	}
	return []scenario{{
		name: "network", about: "the broker's container disconnected from its network for 1 to 2 s",
		rules: check.Rules{IdempotentOK: true}, lasts: 20 * time.Second,
		fault: func(s *stage) {
			s.broker.Do("disconnect")
			s.pause(2 * time.Second)
			s.broker.Do("connect")
		},
	}}
}

// alarmScenarios make the broker block publishing for longer than the deadline of half of the
// calls.
func alarmScenarios() []scenario {
	rules := check.Rules{IdempotentOK: true, Blocked: 100 * time.Millisecond}
	return []scenario{
		{
			name: "memory-alarm", about: "`set_vm_memory_high_watermark absolute 1`, for 6 s", short: true,
			rules: rules, lasts: 20 * time.Second,
			fault: alarm([]string{"set_vm_memory_high_watermark", "absolute", "1"}, []string{"set_vm_memory_high_watermark", "0.4"}),
		},
		{
			name: "disk-alarm", about: "`set_disk_free_limit 100000GB`, for 6 s",
			rules: rules, lasts: 20 * time.Second,
			fault: alarm([]string{"set_disk_free_limit", "100000GB"}, []string{"set_disk_free_limit", "50MB"}),
		},
	}
}

// outage returns a fault that ends the broker, starts it again and records the time of its
// first accepted connection.
func outage(how string) func(*stage) {
	return func(s *stage) {
		s.t.Helper()
		from := time.Now()
		s.broker.Do(how)
		stop := make(chan struct{})
		accepted := make(chan time.Time, 1)
		go func() { // ends when the broker serves or the start has failed
			for !s.serves() {
				select {
				case <-stop:
					return
				case <-time.After(5 * time.Millisecond):
				}
			}
			accepted <- time.Now()
		}()
		defer close(stop)
		s.broker.Do("start")
		until := rig.Recv(s.t, accepted, "the broker to accept connections")
		s.accepted = append(s.accepted, until)
		s.record(ledger.Entry{Kind: ledger.Outage, At: from, Until: until})
	}
}

// serves reports whether the broker answers a protocol header.
func (s *stage) serves() bool {
	const timeout = 5 * time.Second
	address := ""
	rig.Rewrite(s.t, s.broker.URL, func(u *url.URL) { address = u.Host })
	conn, err := (&net.Dialer{Timeout: timeout}).DialContext(s.t.Context(), "tcp", address)
	if err != nil {
		return false
	}
	defer func() { _ = conn.Close() }()
	_ = conn.SetDeadline(time.Now().Add(timeout))
	if _, err := conn.Write([]byte("AMQP\x00\x00\x09\x01")); err != nil {
		return false
	}
	n, err := conn.Read(make([]byte, 1))
	return err == nil && n == 1
}

func frozen(d time.Duration) func(*stage) {
	return func(s *stage) {
		s.t.Helper()
		s.broker.Do("pause")
		s.pause(d)
		s.broker.Do("resume")
	}
}

// frozenLong pauses the broker until every connection has been abandoned.
func frozenLong(s *stage) {
	s.broker.Do("pause")
	s.silenced(client)
	s.silenced(server)
	s.wait(3 * s.sc.load.heartbeat)
	s.broker.Do("resume")
}

func alarm(on, off []string) func(*stage) {
	return func(s *stage) {
		s.t.Helper()
		s.broker.Ctl(on...)
		s.wait(6 * time.Second)
		s.broker.Ctl(off...)
	}
}

func closeConnections(s *stage) {
	s.broker.Ctl("close_all_connections", "--vhost", s.tenant.Vhost, "fault suite")
}

// deleteQueues deletes the queues with the given prefix. For the request queue's name it
// deletes only this queue. The broker deletes no exclusive queue, as those of streams are.
func deleteQueues(prefix string) func(*stage) {
	return func(s *stage) {
		s.t.Helper()
		var all []struct {
			Name      string
			Exclusive bool
		}
		s.manage.Do(http.MethodGet, nil, &all, "queues", s.tenant.Vhost)
		for _, q := range all {
			if strings.HasPrefix(q.Name, prefix) && (prefix != queueName || q.Name == queueName) && !q.Exclusive {
				s.manage.Do(http.MethodDelete, nil, nil, "queues", s.tenant.Vhost, q.Name)
			}
		}
	}
}

func revoke(s *stage) {
	s.tenant.Revoke()
	closeConnections(s) // an open channel keeps its cached permissions
	s.wait(2 * time.Second)
	s.tenant.Grant(".*")
}

func removeVhost(s *stage) {
	s.manage.Do(http.MethodDelete, nil, nil, "vhosts", s.tenant.Vhost)
	s.wait(time.Second)
	s.manage.Do(http.MethodPut, map[string]any{}, nil, "vhosts", s.tenant.Vhost)
	s.tenant.Grant(".*")
}

// shortConsumerTimeout makes the broker close channels whose consumer has not acknowledged
// within a second, and check twice a second.
func shortConsumerTimeout(s *stage) {
	set := func(timeout, tick string) {
		s.broker.Ctl("eval", strings.Join([]string{
			"application:set_env(rabbit, consumer_timeout, ", timeout,
			"), application:set_env(rabbit, channel_tick_interval, ", tick, ").",
		}, ""))
	}
	set("1000", "500")
	s.t.Cleanup(func() { set("1800000", "60000") })
}

// expireReplies lets reply queues without consumers expire after a second.
func expireReplies(s *stage) {
	s.manage.Do(http.MethodPut, map[string]any{
		"pattern": `\.reply\.`, "apply-to": "queues", "definition": map[string]any{"expires": 1000},
	}, nil, "policies", s.tenant.Vhost, "expire")
}
