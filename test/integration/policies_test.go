//go:build integration

package integration

import (
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"rabbitmq-rpc/test/internal/rig"
)

// TestUnusedQueuesExpire: with the policies of docs/operations.md the broker deletes the queues of a
// service that has ended. The test shortens their times.
func TestUnusedQueuesExpire(t *testing.T) {
	t.Parallel()
	manual, err := os.ReadFile(filepath.Join(rig.Root(t), "docs", "operations.md"))
	if err != nil {
		t.Fatal(err)
	}
	management := rig.Manage(t)
	tenant := management.Tenant()
	tenant.Grant(".*")
	expire := func(name string, ms int) {
		t.Helper()
		command := regexp.MustCompile(`set_policy ` + name + ` '([^']+)' '{"expires":\d+}'`).FindSubmatch(manual)
		if command == nil {
			t.Fatalf("the manual has no policy %q", name)
		}
		management.Do(http.MethodPut, map[string]any{
			"pattern": string(command[1]), "definition": map[string]int{"expires": ms}, "apply-to": "queues",
		}, nil, "policies", tenant.Vhost, name)
	}
	expire("unused", 1000)
	r := rig.On(t, tenant.URL())
	server := r.Serve(rig.Methods{"b": letter})
	client := r.Ready()
	rig.Call(t, client, "b", nil)
	rig.Eventually(t, "all queues exist", func() bool { return len(management.Queues(tenant.URL(), r.Queue.Name)) >= 6 })
	if err := client.Close(rig.Patience(t)); err != nil {
		t.Error(err)
	}
	if err := server.Drain(); err != nil {
		t.Error(err)
	}
	rig.Eventually(t, "only the queue of dead letters is left", func() bool {
		left := management.Queues(tenant.URL(), r.Queue.Name)
		return len(left) == 1 && left[0] == r.Queue.Name+".dead"
	})
	expire("dead", 1000)
	rig.Eventually(t, "no queue is left", func() bool { return len(management.Queues(tenant.URL(), r.Queue.Name)) == 0 })
}

// TestPolicyOfTheManualLeavesOurQueuesOut: the policy of docs/operations.md applies to request
// queues and other programs' queues, but not to the library's further queues.
func TestPolicyOfTheManualLeavesOurQueuesOut(t *testing.T) {
	t.Parallel()
	manual, err := os.ReadFile(filepath.Join(rig.Root(t), "docs", "operations.md"))
	if err != nil {
		t.Fatal(err)
	}
	command := regexp.MustCompile(`set_policy bounded '([^']+)'`).FindSubmatch(manual)
	if command == nil {
		t.Fatal("the manual has no such policy")
	}
	management := rig.Manage(t)
	tenant := management.Tenant()
	tenant.Grant(".*")
	management.Do(http.MethodPut, map[string]any{
		"pattern": string(command[1]), "definition": map[string]int{"max-length": 100000}, "apply-to": "queues",
	}, nil, "policies", tenant.Vhost, "bounded")
	r := rig.On(t, tenant.URL())
	r.Serve(rig.Methods{"b": letter})
	client := r.Ready()
	rig.Call(t, client, "b", nil)
	var queues []struct{ Name, Policy string }
	rig.Eventually(t, "the policy is in force", func() bool {
		queues = nil
		management.Do(http.MethodGet, nil, &queues, "queues", tenant.Vhost)
		for _, q := range queues {
			if q.Name == r.Queue.Name {
				return q.Policy == "bounded"
			}
		}
		return false
	})
	beside := 0
	for _, q := range queues {
		if q.Name == r.Queue.Name {
			continue
		}
		beside++
		if q.Policy != "" || !strings.HasPrefix(q.Name, r.Queue.Name+".") {
			t.Errorf("queue %s has the policy %q", q.Name, q.Policy)
		}
	}
	if beside < 5 {
		t.Errorf("found only %v", queues)
	}
}
