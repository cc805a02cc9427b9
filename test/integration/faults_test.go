//go:build integration

package integration

import (
	"net/url"
	"strings"
	"testing"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"rabbitmq-rpc/pkg/amqpx"
	"rabbitmq-rpc/test/internal/rig"
)

// faulty is the expected report of a process without a connection.
type faulty struct {
	kind  amqpx.FaultKind
	texts []string // in the error
	level zapcore.Level
}

// check waits until p reports the fault, and checks the report.
func (f faulty) check(t *testing.T, p peer, logs *observer.ObservedLogs) {
	t.Helper()
	var st amqpx.Status
	defer func() {
		if t.Failed() {
			t.Logf("status %+v", p.Status())
		}
	}()
	rig.Eventually(t, "the fault "+string(f.kind), func() bool {
		st = p.Status()
		return st.Fault == f.kind && !st.Ready() && logs.FilterMessage("connection lost, reconnecting").FilterField(zap.String("fault", string(f.kind))).Len() > 0
	})
	for _, text := range f.texts {
		if !strings.Contains(st.Err.Error(), text) {
			t.Errorf("%q does not say %q", st.Err, text)
		}
	}
	line := logs.FilterMessage("connection lost, reconnecting").FilterField(zap.String("fault", string(f.kind))).All()[0]
	if line.Level != f.level {
		t.Errorf("logged at %s, want %s: %v", line.Level, f.level, line.ContextMap())
	}
	t.Logf("%s: %v", f.kind, st.Err)
}

// startingServer starts a server for a test of a fault.
func startingServer(t *testing.T, r *rig.Rig, address string, opts ...amqpx.ServerOption) (peer, *observer.ObservedLogs) {
	t.Helper()
	core, logs := observer.New(zap.DebugLevel)
	return r.StartAt(address, rig.Methods{"b": letter}, append(opts, amqpx.WithLogger(zap.New(core)))...), logs
}

func startingClient(t *testing.T, r *rig.Rig, address string, opts ...amqpx.ClientOption) (peer, *observer.ObservedLogs) {
	t.Helper()
	core, logs := observer.New(zap.DebugLevel)
	return r.ClientAt(address, append(opts, amqpx.WithLogger(zap.New(core)))...), logs
}

// becomesReady waits until the fault has gone, without a restart.
func becomesReady(t *testing.T, p peer) {
	t.Helper()
	for st := range p.Watch(rig.Patience(t)) { // WaitReady would return the fault
		if st.Ready() {
			break
		}
	}
	if st := p.Status(); !st.Ready() || st.Fault != "" || st.Err != nil {
		t.Errorf("ready with the fault %q: %v", st.Fault, st.Err)
	}
}

// TestLimits: each limit has its own fault, and the process recovers after the limit is
// lifted.
func TestLimits(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		set  func(n *rig.Tenant, value int)
		at   int
		want faulty
	}{
		"connections of the user": {
			func(n *rig.Tenant, v int) { n.LimitUser("max-connections", v) }, 1,
			faulty{amqpx.FaultConnectionLimit, []string{"a limit of connections is reached", "open virtual host"}, zap.WarnLevel},
		},
		"connections of the virtual host": {
			func(n *rig.Tenant, v int) { n.LimitVhost("max-connections", v) }, 0,
			faulty{amqpx.FaultConnectionLimit, []string{"a limit of connections is reached"}, zap.WarnLevel},
		},
		"channels of the user": {
			func(n *rig.Tenant, v int) { n.LimitUser("max-channels", v) }, 2,
			faulty{amqpx.FaultChannelLimit, []string{"open channel", "a limit of channels is reached"}, zap.WarnLevel},
		},
		"queues of the virtual host": {
			func(n *rig.Tenant, v int) { n.LimitVhost("max-queues", v) }, 0,
			faulty{amqpx.FaultQueueLimit, []string{"declare queue", "a limit of queues is reached"}, zap.ErrorLevel},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tenant := rig.Manage(t).Tenant()
			tenant.Grant(".*")
			c.set(tenant, c.at)
			r := rig.Beyond(t, tenant.URL())
			server, logs := startingServer(t, r, tenant.URL())
			c.want.check(t, server, logs)
			client, logs := startingClient(t, r, tenant.URL())
			c.want.check(t, client, logs)
			c.set(tenant, -1)
			becomesReady(t, server)
			becomesReady(t, client)
		})
	}
}

// TestTooFewChannels: a URL with too few channels is reported as the operator's fault.
func TestTooFewChannels(t *testing.T) {
	t.Parallel()
	r := rig.New(t)
	server, logs := startingServer(t, r, r.URL+"?channel_max=1")
	faulty{amqpx.FaultChannelMax, []string{"open channel", "channel_max"}, zap.ErrorLevel}.check(t, server, logs)
}

// TestMissingPermissions: a missing permission is reported with the step and the queue.
func TestMissingPermissions(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		configure, write, read string
		client                 bool
		texts                  []string
	}{
		"configure":             {"^$", ".*", ".*", false, []string{"declare queue", "has no configure permission"}},
		"read":                  {".*", ".*", "^$", false, []string{"consume from queue", "has no read permission"}},
		"configure of a client": {"^$", ".*", ".*", true, []string{"declare queue", ".reply.", "has no configure permission"}},
		"read of a client":      {".*", ".*", "^$", true, []string{"consume from queue", ".reply.", "has no read permission"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tenant := rig.Manage(t).Tenant()
			tenant.Permit(c.configure, c.write, c.read)
			r := rig.Beyond(t, tenant.URL())
			var p peer
			var logs *observer.ObservedLogs
			if c.client {
				p, logs = startingClient(t, r, tenant.URL())
			} else {
				p, logs = startingServer(t, r, tenant.URL())
			}
			faulty{amqpx.FaultPermission, append(c.texts, r.Queue.Name, tenant.User), zap.ErrorLevel}.check(t, p, logs)
			tenant.Grant(".*")
			becomesReady(t, p)
		})
	}
}

// TestMissingWritePermission: without the write permission the first message ends the
// connection.
func TestMissingWritePermission(t *testing.T) {
	t.Parallel()
	tenant := rig.Manage(t).Tenant()
	tenant.Permit(".*", "^$", ".*")
	r := rig.Beyond(t, tenant.URL())
	core, logs := observer.New(zap.DebugLevel)
	client := r.ClientAt(tenant.URL(), amqpx.WithUserID(false), amqpx.WithLogger(zap.New(core)))
	rig.Connected(t, client)
	begin(rig.Patience(t), client, "b", nil)
	rig.Eventually(t, "the fault", func() bool {
		return logs.FilterField(zap.String("fault", string(amqpx.FaultPermission))).Len() > 0
	})
	line := logs.FilterField(zap.String("fault", string(amqpx.FaultPermission))).All()[0]
	for _, text := range []string{"publish: ", "has no write permission"} {
		if got, _ := line.ContextMap()["error"].(string); !strings.Contains(got, text) {
			t.Errorf("%q does not say %q", got, text)
		}
	}
}

// TestQueueInExclusiveUse: a queue with another, exclusive consumer is reported, and the
// server waits for it.
func TestQueueInExclusiveUse(t *testing.T) {
	t.Parallel()
	r := rig.New(t)
	r.Declare(true, nil)
	other := r.Raw()
	if _, err := other.Consume(r.Queue.Name, "other", false, true, false, false, nil); err != nil {
		t.Fatal(err)
	}
	server, logs := startingServer(t, r, r.URL)
	faulty{amqpx.FaultQueueInUse, []string{"consume from queue", "another consumer has queue", r.Queue.Name}, zap.WarnLevel}.check(t, server, logs)
	if err := other.Close(); err != nil {
		t.Fatal(err)
	}
	becomesReady(t, server)
}

// TestExclusiveQueueOfAnotherConnection: a queue exclusive to another connection is reported,
// and the server waits for it.
func TestExclusiveQueueOfAnotherConnection(t *testing.T) {
	t.Parallel()
	r := rig.New(t)
	owner := rig.Dial(t, r.URL)
	ch, err := owner.Channel()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ch.QueueDeclare(r.Queue.Name, false, true, true, false, nil); err != nil {
		t.Fatal(err)
	}
	server, logs := startingServer(t, r, r.URL)
	faulty{amqpx.FaultQueueExclusive, []string{"declare queue", r.Queue.Name, "another connection"}, zap.WarnLevel}.check(t, server, logs)
	if err := owner.Close(); err != nil {
		t.Fatal(err)
	}
	becomesReady(t, server)
}

// TestRefusedLogins checks the faults of refused logins and virtual hosts.
func TestRefusedLogins(t *testing.T) {
	t.Parallel()
	tenant := rig.Manage(t).Tenant()
	r := rig.Beyond(t, rig.URL())
	for name, c := range map[string]struct {
		url  string
		want faulty
	}{
		"wrong password": {tenant.URLWith("wrong"), faulty{amqpx.FaultCredentials, []string{"authenticate: ", "wrong user name or password"}, zap.ErrorLevel}},
		"missing virtual host": {
			rig.Rewrite(t, rig.URL(), func(u *url.URL) { u.Path = "/limit" }),
			faulty{amqpx.FaultVhostMissing, []string{"open virtual host: ", `"limit" does not exist`}, zap.ErrorLevel},
		},
		"closed virtual host": {tenant.URL(), faulty{amqpx.FaultVhostClosed, []string{"open virtual host: ", "is closed to user"}, zap.ErrorLevel}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			client, logs := startingClient(t, r, c.url)
			c.want.check(t, client, logs)
		})
	}
}

// TestWrongPorts checks the faults of URLs with a wrong port or scheme.
func TestWrongPorts(t *testing.T) {
	t.Parallel()
	secure, caFile := rig.TLS(t)
	host := func(raw string) string {
		u, err := url.Parse(raw)
		if err != nil {
			t.Fatal(err)
		}
		return u.Host
	}
	r := rig.Beyond(t, rig.URL())
	for name, c := range map[string]struct {
		scheme, host string
		kind         amqpx.FaultKind
		step         string
	}{
		"plain to TLS":  {"amqp", host(secure), amqpx.FaultPortTLS, "AMQP handshake: "},
		"TLS to plain":  {"amqps", host(rig.URL()), amqpx.FaultPortPlain, "TLS handshake: "},
		"plain to HTTP": {"amqp", host(rig.ManagementURL()), amqpx.FaultPortHTTP, "AMQP handshake: "},
		"TLS to HTTP":   {"amqps", host(rig.ManagementURL()), amqpx.FaultPortHTTP, "TLS handshake: "},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			address := rig.Rewrite(t, rig.URL(), func(u *url.URL) { u.Scheme, u.Host = c.scheme, c.host })
			if c.scheme == "amqps" {
				address += "?cacertfile=" + caFile
			}
			client, logs := startingClient(t, r, address)
			faulty{c.kind, []string{c.step}, zap.ErrorLevel}.check(t, client, logs)
		})
	}
}

// TestControlPlaneComesLater: the control plane is optional: a server at its limit of queues
// serves without the control plane, reports the reason, and gets the control plane on the same
// connection after the limit is lifted.
func TestControlPlaneComesLater(t *testing.T) {
	t.Parallel()
	tenant := rig.Manage(t).Tenant()
	tenant.Grant(".*")
	r := rig.On(t, tenant.URL())
	r.Serve(rig.Methods{"b": letter}).Drain() //nolint:errcheck // it only makes the queues.
	tenant.LimitVhost("max-queues", len(rig.Manage(t).Queues(tenant.URL(), r.Queue.Name)))
	core, logs := observer.New(zap.DebugLevel)
	server := r.Serve(rig.Methods{"b": letter}, amqpx.WithLogger(zap.New(core)))
	lines := logs.FilterMessage("no control plane: the broker refused it")
	if lines.Len() != 1 || lines.All()[0].ContextMap()["fault"] != string(amqpx.FaultQueueLimit) {
		t.Errorf("logged %v", logs.All())
	}
	if _, err := server.Ping(rig.Patience(t)); amqpx.CodeOf(err) != amqpx.CodeUnimplemented {
		t.Errorf("ping without a control plane: %v", err)
	}
	tenant.LimitVhost("max-queues", -1)
	rig.Eventually(t, "the control plane is there", func() bool {
		_, err := server.Ping(rig.Patience(t))
		return err == nil
	})
	if got := server.Status().Generation; got != 1 {
		t.Errorf("connection %d, want the first one", got)
	}
}
