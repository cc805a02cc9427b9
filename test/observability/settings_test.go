//go:build integration

package observability

import (
	"os"
	"path/filepath"
	"testing"

	"go.yaml.in/yaml/v3"
)

// targets holds the host:port addresses of each job's targets.
type targets map[string][]string

// settings is the part of the overlay's Prometheus settings used by the tests.
type settings struct {
	Global map[string]any   `yaml:"global"`
	Rules  []string         `yaml:"rule_files"`
	Jobs   []map[string]any `yaml:"scrape_configs"`
}

// overlaySettings reads the overlay's settings.
func overlaySettings(t *testing.T) settings {
	t.Helper()
	var s settings
	readYAML(t, &s, folder(t), "prometheus", "prometheus.yml")
	if len(s.Jobs) == 0 {
		t.Fatal("the overlay's Prometheus reads nothing")
	}
	return s
}

// newerThanDebian returns settings unknown to Prometheus 2.42, Debian's version. In this
// version a flag enables native histograms.
func newerThanDebian() []string {
	return []string{"scrape_native_histograms", "always_scrape_classic_histograms"}
}

// adapted writes the overlay's settings to a folder and returns the file. It changes only the
// targets, the settings unknown to Debian's Prometheus, and the intervals, so that tests need
// not wait.
func adapted(t *testing.T, at targets) string {
	t.Helper()
	s := overlaySettings(t)
	for _, name := range newerThanDebian() {
		if _, ok := s.Global[name]; !ok {
			t.Errorf("the overlay does not set %s", name)
		}
		delete(s.Global, name)
	}
	for _, name := range []string{"scrape_interval", "scrape_timeout", "evaluation_interval"} {
		s.Global[name] = "1s"
	}
	for _, job := range s.Jobs {
		name, _ := job["job_name"].(string)
		if len(at[name]) == 0 {
			t.Fatalf("job %q reads what this test does not run", name)
		}
		delete(job, "dns_sd_configs")
		job["static_configs"] = []map[string]any{{"targets": at[name]}}
	}
	dir := t.TempDir()
	for _, name := range s.Rules {
		write(t, read(t, folder(t), "prometheus", name), dir, name)
	}
	content, err := yaml.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	return write(t, content, dir, "prometheus.yml")
}

func write(t *testing.T, content []byte, path ...string) string {
	t.Helper()
	const private = 0o600
	name := filepath.Join(path...)
	if err := os.WriteFile(name, content, private); err != nil {
		t.Fatal(err)
	}
	return name
}
