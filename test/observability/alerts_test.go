//go:build integration

package observability

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"rabbitmq-rpc/test/internal/rig"
)

// rule is an alert in Prometheus's API.
type rule struct {
	Name, Query, Health, LastError string
	Alerts                         []struct{ Labels map[string]string }
}

// rules returns all alerts by name.
func (p *prometheus) rules() map[string]rule {
	p.t.Helper()
	var response struct{ Groups []struct{ Rules []rule } }
	p.ask(&response, "rules", nil)
	all := map[string]rule{}
	for _, g := range response.Groups {
		for _, r := range g.Rules {
			all[r.Name] = r
		}
	}
	return all
}

// active returns the alerts, pending or firing, of a queue and its companions.
func (p *prometheus) active(queue string) []string {
	p.t.Helper()
	names := map[string]bool{}
	for name, r := range p.rules() {
		for _, a := range r.Alerts {
			if q := a.Labels["queue"]; q == queue || strings.HasPrefix(q, queue+".") {
				names[name] = true
			}
		}
	}
	return slices.Sorted(maps.Keys(names))
}

// expected reports whether an alert may be active for the tested pair: all calls of one client
// fail, and the machine may be slow.
func expected(name string) bool {
	return slices.Contains([]string{"RpcErrors", "RpcSlow", "RpcQueueGrows", "RpcWorkersBusy"}, name)
}

// alerts checks that Prometheus evaluates every alert and that no unexpected alert is active
// for a healthy pair.
func (s *stage) alerts(t *testing.T) {
	p := s.classic.of(t)
	for _, a := range readAlerts(t) {
		p.query(a.Expr)
		rig.Eventually(t, "Prometheus evaluates "+a.Alert, func() bool { return p.rules()[a.Alert].Health != "unknown" })
		if r := p.rules()[a.Alert]; r.Health != "ok" {
			t.Errorf("%s: %q %s", a.Alert, r.Health, r.LastError)
		}
	}
	if active := slices.DeleteFunc(p.active(s.queue), expected); len(active) != 0 {
		t.Errorf("alerts about a healthy pair: %v", active)
	}
}

// withoutServers stops the servers and then the clients. Prometheus must report the missing
// servers, and its counts must equal the clients' reports.
func (s *stage) withoutServers(t *testing.T) {
	p := s.classic.of(t)
	for _, server := range s.servers {
		server.Terminate()
		if err := server.Wait(); err != nil {
			t.Errorf("a server ended with %v", err)
		}
	}
	rig.Eventually(t, "Prometheus misses the servers", func() bool {
		v, ok := p.value(`sum(up{job="rpc-server"})`)
		return ok && v == 0
	})
	rig.Eventually(t, "the alerts tell of it", func() bool {
		return slices.Contains(p.active(s.queue), "RpcNobodyConsumes") && len(p.rules()["RpcNoReadyServer"].Alerts) == 1
	})
	for _, client := range s.clients {
		client.Terminate()
		if err := client.Wait(); err == nil {
			t.Error("a client calls it a success that its last calls had no server")
		}
	}
	ended := `sum(last_over_time(amqpx_client_call_duration_seconds_count{instance="%s", code="%s"}[5m]))`
	answered, failed := s.clients[0].result(t), s.clients[1].result(t)
	if answered.OK == 0 || failed.Errors["unimplemented"] == 0 {
		t.Errorf("the clients report %+v and %+v", answered, failed)
	}
	p.counts(fmt.Sprintf(ended, s.clients[0].addr, "ok"), float64(answered.OK))
	p.counts(fmt.Sprintf(ended, s.clients[1].addr, "unimplemented"), float64(failed.Errors["unimplemented"]))
}
