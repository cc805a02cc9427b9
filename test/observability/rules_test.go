//go:build integration

package observability

import (
	"path/filepath"
	"strings"
	"testing"
)

// alert is an alerting rule in the rules file.
type alert struct {
	Alert, Expr         string
	Labels, Annotations map[string]string
}

func readAlerts(t *testing.T) []alert {
	t.Helper()
	var file struct{ Groups []struct{ Rules []alert } }
	readYAML(t, &file, folder(t), "prometheus", "rules.yml")
	var all []alert
	for _, g := range file.Groups {
		all = append(all, g.Rules...)
	}
	if len(all) == 0 {
		t.Fatal("there are no alerts")
	}
	return all
}

func TestPromtoolAccepts(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(folder(t), "prometheus")
	nobody := targets{}
	for _, job := range overlaySettings(t).Jobs {
		name, _ := job["job_name"].(string)
		nobody[name] = []string{"127.0.0.1:1"}
	}
	promtool(t, "check", "config", adapted(t, nobody))
	promtool(t, "check", "rules", filepath.Join(dir, "rules.yml"))
	promtool(t, "test", "rules", filepath.Join(dir, "rules_test.yml"))
}

// TestAlertsAreComplete: each alert has a severity and a runbook, and rules_test.yml tests its
// firing.
func TestAlertsAreComplete(t *testing.T) {
	t.Parallel()
	tried := string(read(t, folder(t), "prometheus", "rules_test.yml"))
	for _, a := range readAlerts(t) {
		if severity := a.Labels["severity"]; severity != "critical" && severity != "warning" {
			t.Errorf("%s: severity %q", a.Alert, severity)
		}
		if a.Annotations["summary"] == "" || a.Annotations["runbook"] == "" {
			t.Errorf("%s: says not what is wrong and what to do", a.Alert)
		}
		if !strings.Contains(tried, `alertname="`+a.Alert+`", alertstate="firing"`) {
			t.Errorf("%s: rules_test.yml does not see it fire", a.Alert)
		}
	}
}
