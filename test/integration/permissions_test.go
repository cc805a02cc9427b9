//go:build integration

package integration

import (
	"context"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"rabbitmq-rpc/pkg/amqpx"
	"rabbitmq-rpc/test/internal/rig"
)

// documented returns a user's patterns in docs/operations.md: configure, write and read.
func documented(t *testing.T, user string) [3]string {
	t.Helper()
	doc, err := os.ReadFile(filepath.Join(rig.Root(t), "docs", "operations.md"))
	if err != nil {
		t.Fatal(err)
	}
	const pattern = `[\s\\]+'([^']+)'`
	found := regexp.MustCompile(`set_permissions ` + user + strings.Repeat(pattern, 3) + `\n`).FindSubmatch(doc)
	if found == nil {
		t.Fatalf("docs/operations.md has no permissions of a %s", user)
	}
	return [3]string{string(found[1]), string(found[2]), string(found[3])}
}

// permitted returns the AMQP URL of a new user with the documented permissions.
func permitted(t *testing.T, owner *rig.Tenant, user string) string {
	t.Helper()
	n, p := owner.Another(), documented(t, user)
	n.Permit(p[0], p[1], p[2])
	return n.URL()
}

// TestDocumentedPermissions: the permissions of the run book suffice for all functions: single
// calls and batches, cancellations, pings, the list of servers, dead letters.
func TestDocumentedPermissions(t *testing.T) {
	t.Parallel()
	t.Run("a user for each purpose", func(t *testing.T) {
		t.Parallel()
		worksWith(t, func(owner *rig.Tenant, purpose string) string { return permitted(t, owner, purpose) })
	})
	t.Run("one user for all", func(t *testing.T) {
		t.Parallel()
		url := ""
		worksWith(t, func(owner *rig.Tenant, _ string) string {
			if url == "" {
				url = permitted(t, owner, "pair")
			}
			return url
		})
	})
}

// worksWith creates a server and two clients with the URLs returned by user, and tests all
// their functions.
func worksWith(t *testing.T, user func(owner *rig.Tenant, purpose string) string) {
	t.Helper()
	owner := rig.Manage(t).Tenant()
	owner.Grant(".*")
	r := rig.On(t, owner.URL())
	r.Queue.Name = amqpx.DefaultQueue // only this test uses the virtual host
	servers := rig.Beyond(t, user(owner, "server"))
	servers.Queue = r.Queue

	c := &canceled{begun: make(chan string, 1), ended: make(chan string, 1)}
	server := servers.Serve(rig.Methods{"echo": echo, "wait": c.handle})
	client := r.ClientAt(user(owner, "client"))
	rig.Connected(t, client)
	if got := rig.Call(t, client, "echo", []byte("x")); string(got) != "x" {
		t.Errorf("got %q", got)
	}
	openLane(t, client)
	ctx, cancel := context.WithCancel(rig.Patience(t))
	call := begin(ctx, client, "wait", []byte("goes"))
	rig.Recv(t, c.begun, "the handler to begin")
	cancel()
	if got := rig.Recv(t, c.ended, "the handler's context to end"); got != "goes context canceled" {
		t.Errorf("the handler ended with %q", got)
	}
	rig.Recv(t, call, "the call to settle")
	if _, err := server.Ping(rig.Patience(t)); err != nil {
		t.Errorf("ping of a server to itself: %v", err)
	}
	watcher := r.ClientAt(user(owner, "watcher"))
	rig.Connected(t, watcher)
	listed(t, watcher, 1)
	if _, err := watcher.Ping(rig.Patience(t)); err != nil {
		t.Errorf("ping: %v", err)
	}
	if err := server.Drain(); err != nil {
		t.Error(err)
	}

	mortals(t, servers)
	poison := begin(rig.Patience(t), client, "stop", []byte("poison"), amqpx.WaitForServer())
	want{code: amqpx.CodeInternal, outcome: amqpx.MayHaveRun, remote: true}.
		check(t, rig.Recv(t, poison, "the call to settle").err)
	deadLetter(t, r)
	for name, n := range map[string]uint64{
		"server": server.Stats().Reconnects, "client": client.Stats().Reconnects, "watcher": watcher.Stats().Reconnects,
	} {
		if n != 0 {
			t.Errorf("%s: %d reconnects", name, n)
		}
	}
}
