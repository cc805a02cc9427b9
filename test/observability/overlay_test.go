//go:build integration

package observability

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"rabbitmq-rpc/test/internal/rig"
)

// service is the checked part of a Compose file.
type service struct {
	Image          string
	Ports, Volumes []string
	CapDrop        []string `yaml:"cap_drop"`
	ReadOnly       bool     `yaml:"read_only"`
	MemLimit       string   `yaml:"mem_limit"`
	Restart        string
	Logging        struct{ Options map[string]string }
	Healthcheck    struct{ Test []string }
	Environment    map[string]string
}

func services(t *testing.T, file ...string) map[string]service {
	t.Helper()
	var compose struct{ Services map[string]service }
	readYAML(t, &compose, append([]string{rig.Root(t)}, file...)...)
	return compose.Services
}

// TestOverlayIsBounded: the overlay's services have pinned images and limits, and are
// reachable only from this machine.
func TestOverlayIsBounded(t *testing.T) {
	t.Parallel()
	example := string(read(t, rig.Root(t), ".env.example"))
	pair := services(t, "docker-compose.yml")
	pinned := regexp.MustCompile(`^\$\{([A-Z]+_IMAGE):-([a-z/]+:v?\d+\.\d+\.\d+)\}$`)
	local := regexp.MustCompile(`^127\.0\.0\.1:\$\{([A-Z]+_PORT):-(\d+)\}:\d+$`)
	added := 0
	for name, s := range services(t, "compose", "observability.yml") {
		if _, there := pair[name]; there {
			if s.Environment["OTEL_EXPORTER_OTLP_ENDPOINT"] != "http://jaeger:4318" {
				t.Errorf("%s sends its traces to %q", name, s.Environment["OTEL_EXPORTER_OTLP_ENDPOINT"])
			}
			continue
		}
		added++
		variables := [][]string{pinned.FindStringSubmatch(s.Image)}
		for _, p := range s.Ports {
			variables = append(variables, local.FindStringSubmatch(p))
		}
		for _, v := range variables {
			if v == nil {
				t.Errorf("%s: image %q is not pinned, or not all of %q are of 127.0.0.1", name, s.Image, s.Ports)
			} else if line := "# " + v[1] + "=" + v[2] + "\n"; !strings.Contains(example, line) {
				t.Errorf(".env.example has no line %q", line)
			}
		}
		if !s.ReadOnly || !slices.Equal(s.CapDrop, []string{"ALL"}) || s.MemLimit == "" || s.Restart == "" ||
			s.Logging.Options["max-size"] == "" || len(s.Healthcheck.Test) == 0 {
			t.Errorf("%s is not bounded: %+v", name, s)
		}
		mounted(t, s.Volumes)
	}
	if added != 3 {
		t.Errorf("the overlay adds %d services", added)
	}
}

// mounted checks for the existence and the read-only mount of the repository's files.
func mounted(t *testing.T, volumes []string) {
	t.Helper()
	for _, v := range volumes {
		if from, to, _ := strings.Cut(v, ":"); strings.HasPrefix(from, ".") {
			if _, err := os.Stat(filepath.Join(rig.Root(t), from)); err != nil {
				t.Error(err)
			}
			if !strings.HasSuffix(to, ":ro") {
				t.Errorf("%s can be written to", v)
			}
		}
	}
}

// TestJobsReadServicesOfTheComposeFile: the host names in Prometheus's settings are services
// of the Compose files.
func TestJobsReadServicesOfTheComposeFile(t *testing.T) {
	t.Parallel()
	pair := services(t, "docker-compose.yml")
	content := string(read(t, folder(t), "prometheus", "prometheus.yml"))
	hosts := regexp.MustCompile(`(?m)^ +- (?:names|targets): \[([a-z-]+)`).FindAllStringSubmatch(content, -1)
	if len(hosts) != len(overlaySettings(t).Jobs) {
		t.Errorf("found the hosts %v only", hosts)
	}
	for _, h := range hosts {
		if _, there := pair[h[1]]; !there {
			t.Errorf("Prometheus reads %s, which is no service", h[1])
		}
	}
}
