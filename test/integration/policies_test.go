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
