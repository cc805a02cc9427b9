//go:build integration

package integration

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"rabbitmq-rpc/pkg/amqpx"
	"rabbitmq-rpc/test/internal/rig"
)

// peer is the common interface of a client and a server.
type peer interface {
	Status() amqpx.Status
	WaitReady(ctx context.Context) error
	Watch(ctx context.Context) <-chan amqpx.Status
}

// bothSides runs a test with a client and with a server for the address, and passes their
// logs.
func bothSides(t *testing.T, address string, f func(t *testing.T, p peer, logs *observer.ObservedLogs)) {
	t.Helper()
	t.Run("client", func(t *testing.T) {
		t.Parallel()
		core, logs := observer.New(zap.DebugLevel)
		f(t, rig.Beyond(t, address).Client(amqpx.WithLogger(zap.New(core))), logs)
	})
	t.Run("server", func(t *testing.T) {
		t.Parallel()
		core, logs := observer.New(zap.DebugLevel)
		f(t, rig.Beyond(t, address).Start(rig.Methods{"b": letter}, amqpx.WithLogger(zap.New(core))), logs)
	})
}

// fails waits for n failed attempts and returns the last error.
func fails(t *testing.T, logs *observer.ObservedLogs, p peer, n int) error {
	t.Helper()
	rig.Eventually(t, fmt.Sprintf("%d attempts have failed", n), func() bool {
		return logs.FilterMessage("connection lost, reconnecting").Len() >= n
	})
	st := p.Status()
	if st.Ready() || st.Err == nil {
		t.Fatalf("status %+v, want it to be down and to say why", st)
	}
	return st.Err
}

// saidOnce checks for a single log line of the fault at a visible level, without the secret in
// the log or the error.
func saidOnce(t *testing.T, logs *observer.ObservedLogs, err error, level zapcore.Level, secret string) {
	t.Helper()
	seen := 0
	for _, entry := range logs.All() {
		if entry.Level >= zap.WarnLevel {
			seen++
			if entry.Level != level {
				t.Errorf("logged at %s, want %s: %v", entry.Level, level, entry)
			}
		}
		if line := fmt.Sprint(entry.Message, entry.ContextMap()); secret != "" && strings.Contains(line, secret) {
			t.Errorf("a log line holds the password: %s", line)
		}
	}
	if seen != 1 {
		t.Errorf("%d lines that people see, want one for all attempts: %v", seen, logs.All())
	}
	if text := fmt.Sprintf("%+v %q", err, err); secret != "" && strings.Contains(text, secret) {
		t.Errorf("the error holds the password: %s", text)
	}
}

func TestUnreachableBroker(t *testing.T) {
	t.Parallel()
	const secret = "not-for-the-log"
	address := rig.Rewrite(t, rig.URL(), func(u *url.URL) {
		u.Host, u.User = deadAddress, url.UserPassword("someone", secret)
	})
	bothSides(t, address, func(t *testing.T, p peer, logs *observer.ObservedLogs) {
		t.Helper()
		err := fails(t, logs, p, 4)
		if !strings.Contains(err.Error(), "no connection") || !strings.Contains(err.Error(), "connection refused") {
			t.Errorf("%q does not say what is wrong", err)
		}
		saidOnce(t, logs, err, zap.WarnLevel, secret)

		err = p.WaitReady(rig.Within(t, 100*time.Millisecond))
		if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "connection refused") {
			t.Errorf("WaitReady: %v, want the deadline and the fault", err)
		}
	})
	t.Run("call", func(t *testing.T) {
		t.Parallel()
		client := rig.Beyond(t, address).Client()
		_, err := client.Call(rig.Within(t, 300*time.Millisecond), "b", nil)
		want{
			code: amqpx.CodeDeadlineExceeded, outcome: amqpx.DidNotRun,
			is: []error{amqpx.ErrNotConnected, context.DeadlineExceeded},
		}.check(t, err)
		if !strings.Contains(err.Error(), "connection refused") || strings.Contains(err.Error(), secret) {
			t.Errorf("%q must name the fault and not the password", err)
		}
	})
}

// TestSilentBroker: a broker which accepts a connection and sends nothing does not block an
// attempt forever.
func TestSilentBroker(t *testing.T) {
	t.Parallel()
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	address := rig.Rewrite(t, rig.URL(), func(u *url.URL) { u.Host = l.Addr().String() })
	core, logs := observer.New(zap.DebugLevel)
	client := rig.Beyond(t, address).Client(amqpx.WithDialTimeout(100*time.Millisecond), amqpx.WithLogger(zap.New(core)))
	if err := fails(t, logs, client, 3); !strings.Contains(err.Error(), "no answer in time") {
		t.Errorf("%q does not say what is wrong", err)
	}
}

// TestWrongPassword: the error names a wrong password. RabbitMQ reports it only after 3 s, so
// the default dial timeout must be longer.
func TestWrongPassword(t *testing.T) {
	t.Parallel()
	const secret = "wrong-pass-word"
	tenant := rig.Manage(t).Tenant()
	tenant.Grant(".*")
	bothSides(t, tenant.URLWith(secret), func(t *testing.T, p peer, logs *observer.ObservedLogs) {
		t.Helper()
		err := fails(t, logs, p, 2)
		if want := fmt.Sprintf("wrong user name or password for user %q", tenant.User); !strings.Contains(err.Error(), want) {
			t.Errorf("%q does not say %s", err, want)
		}
		saidOnce(t, logs, err, zap.ErrorLevel, secret)
	})
}

func TestMissingVirtualHost(t *testing.T) {
	t.Parallel()
	address := rig.Rewrite(t, rig.URL(), func(u *url.URL) { u.Path = "/no%2Fsuch" })
	bothSides(t, strings.ReplaceAll(address, "%252F", "%2F"), func(t *testing.T, p peer, logs *observer.ObservedLogs) {
		t.Helper()
		err := fails(t, logs, p, 3)
		if !strings.Contains(err.Error(), `virtual host "no/such" does not exist`) {
			t.Errorf("%q does not say what is wrong", err)
		}
		saidOnce(t, logs, err, zap.ErrorLevel, "")
	})
}

func TestPermissionsComeAndGo(t *testing.T) {
	t.Parallel()
	tenant := rig.Manage(t).Tenant()
	r := rig.On(t, tenant.URL())
	core, logs := observer.New(zap.DebugLevel)
	server := r.Start(rig.Methods{"b": letter}, amqpx.WithLogger(zap.New(core)))
	client := r.Client(amqpx.WithCallOptions(amqpx.WaitForServer()))

	err := fails(t, logs, server, 2)
	closed := fmt.Sprintf("virtual host %q is closed to user %q", tenant.Vhost, tenant.User)
	if !strings.Contains(err.Error(), closed) {
		t.Errorf("%q does not say %s", err, closed)
	}

	tenant.Grant("nothing") // may connect, but not declare
	refused := fmt.Sprintf("user %q has no configure permission", tenant.User)
	rig.Eventually(t, "the fault names the permission", func() bool {
		st := server.Status()
		return st.Err != nil && strings.Contains(st.Err.Error(), refused) && !st.Ready()
	})

	tenant.Grant(".*")
	if got := rig.Call(t, client, "b", nil); string(got) != "b" {
		t.Errorf("got %q, want %q", got, "b")
	}
	rig.Eventually(t, "the server, which may answer before it says so, is ready", func() bool {
		st := server.Status()
		return st.Ready() && st.Err == nil
	})
	for _, entry := range logs.All() {
		if line := fmt.Sprint(entry.Message, entry.ContextMap()); strings.Contains(line, tenant.Password) {
			t.Errorf("a log line holds the password: %s", line)
		}
	}
}
