//go:build integration

// Package observability tests the setup of compose/observability.yml on machines without an
// image registry. Debian's Prometheus, with the overlay's own settings, scrapes real services
// and a real RabbitMQ, and then evaluates every query of the dashboard and every alert.
package observability

import (
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"go.yaml.in/yaml/v3"

	"rabbitmq-rpc/test/internal/rig"
)

func TestMain(m *testing.M) { rig.Main(m) }

// folder returns the folder of the overlay's files.
func folder(t *testing.T) string {
	t.Helper()
	return filepath.Join(rig.Root(t), "compose", "observability")
}

func read(t *testing.T, path ...string) []byte {
	t.Helper()
	content, err := os.ReadFile(filepath.Join(path...))
	if err != nil {
		t.Fatal(err)
	}
	return content
}

func readYAML(t *testing.T, into any, path ...string) {
	t.Helper()
	if err := yaml.Unmarshal(read(t, path...), into); err != nil {
		t.Fatalf("%s: %v", filepath.Join(path...), err)
	}
}

func readJSON(t *testing.T, into any, path ...string) {
	t.Helper()
	if err := json.Unmarshal(read(t, path...), into); err != nil {
		t.Fatalf("%s: %v", filepath.Join(path...), err)
	}
}

// program returns the path of a program of Debian's package prometheus.
func program(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Fatalf("no %s: install the package prometheus", name)
	}
	return path
}

// promtool runs a check that must succeed.
func promtool(t *testing.T, args ...string) {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), program(t, "promtool"), args...).CombinedOutput()
	if failed := (*exec.ExitError)(nil); errors.As(err, &failed) {
		t.Errorf("promtool %v: %v\n%s", args, err, out)
	} else if err != nil {
		t.Fatal(err)
	}
}
