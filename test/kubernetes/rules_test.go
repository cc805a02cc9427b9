package kubernetes

import (
	"flag"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

// update writes the PrometheusRule instead of comparing it.
var update = flag.Bool("update", false, "write deploy/kubernetes/overlays/production/prometheus-rule.yaml") //nolint:gochecknoglobals // flags are read before the tests run

const ruleFile = "deploy/kubernetes/overlays/production/prometheus-rule.yaml"

// TestPrometheusRule: the alerts on Kubernetes are those of compose/observability.
func TestPrometheusRule(t *testing.T) {
	t.Parallel()
	_, groups, found := strings.Cut(read(t, "compose", "observability", "prometheus", "rules.yml"), "\ngroups:\n")
	if !found {
		t.Fatal("rules.yml has no groups")
	}
	var want strings.Builder
	want.WriteString(`# Made by "make alerts" from compose/observability/prometheus/rules.yml: change that file.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: rpc
spec:
  groups:
`)
	for line := range strings.Lines(groups) {
		if line != "\n" {
			want.WriteString("  ")
		}
		want.WriteString(line)
	}
	if *update {
		if err := os.WriteFile(filepath.Join(root, ruleFile), []byte(want.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if read(t, ruleFile) != want.String() {
		t.Errorf("%s differs from rules.yml: run make alerts", ruleFile)
	}
	o, err := build(sources(t), production)
	if err != nil {
		t.Fatal(err)
	}
	got, err := yaml.Marshal(o.rules["rpc"].Spec)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(parse(t, got), parse(t, []byte("groups:\n"+groups))) {
		t.Errorf("the overlay has other alerts than rules.yml:\n%s", got)
	}
}

// TestServiceMonitorOfTheBroker: Prometheus reads from RabbitMQ on Kubernetes what it reads in
// compose/observability.
func TestServiceMonitorOfTheBroker(t *testing.T) {
	t.Parallel()
	var file struct {
		ScrapeConfigs []struct {
			JobName        string `json:"job_name"`
			MetricsPath    string `json:"metrics_path"`
			Params         map[string][]string
			RelabelConfigs []struct {
				Regex, Action string
				SourceLabels  []string `json:"source_labels"`
			} `json:"metric_relabel_configs"`
		} `json:"scrape_configs"`
	}
	if err := yaml.Unmarshal([]byte(read(t, "compose", "observability", "prometheus", "prometheus.yml")), &file); err != nil {
		t.Fatal(err)
	}
	o, err := build(sources(t), production)
	if err != nil {
		t.Fatal(err)
	}
	endpoints := o.monitors["rabbitmq"].Spec.Endpoints
	compared := 0
	for _, config := range file.ScrapeConfigs {
		if config.JobName != "rabbitmq-queues" {
			continue
		}
		compared++
		queues := endpoints[len(endpoints)-1]
		relabel, want := queues.MetricRelabelConfigs[0], config.RelabelConfigs[0]
		if queues.Path != config.MetricsPath || !reflect.DeepEqual(queues.Params, config.Params) || relabel.Regex != want.Regex ||
			relabel.Action != want.Action || string(relabel.SourceLabels[0]) != want.SourceLabels[0] {
			t.Errorf("the ServiceMonitor rabbitmq reads %+v, compose/observability %+v", queues, config)
		}
	}
	if compared != 1 {
		t.Error("prometheus.yml has no job rabbitmq-queues")
	}
}

func parse(t *testing.T, content []byte) any {
	t.Helper()
	var value any
	if err := yaml.Unmarshal(content, &value); err != nil {
		t.Fatal(err)
	}
	return value
}
