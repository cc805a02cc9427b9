package test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

// composeService is the checked part of a service in docker-compose.yml.
type composeService struct {
	Build       struct{ Dockerfile string }
	Healthcheck struct {
		Test    []string
		Disable bool
	}
	DependsOn map[string]struct{ Condition string } `yaml:"depends_on"`

	User        string
	CapDrop     []string `yaml:"cap_drop"`
	SecurityOpt []string `yaml:"security_opt"`
	ReadOnly    bool     `yaml:"read_only"`
	MemLimit    string   `yaml:"mem_limit"`
	Logging     struct{ Options map[string]string }
	Ports       []string
	Environment map[string]string
}

// composeServices returns the services of docker-compose.yml.
func composeServices(t *testing.T) map[string]composeService {
	t.Helper()
	content, err := os.ReadFile("../docker-compose.yml")
	if err != nil {
		t.Fatal(err)
	}
	var file struct{ Services map[string]composeService }
	if err := yaml.Unmarshal(content, &file); err != nil {
		t.Fatal(err)
	}
	if len(file.Services) != 3 {
		t.Fatalf("docker-compose.yml has %d services", len(file.Services))
	}
	return file.Services
}

// imageHealthcheck returns the command of a Dockerfile's HEALTHCHECK.
func imageHealthcheck(t *testing.T, dockerfile string) []string {
	t.Helper()
	content, err := os.ReadFile(filepath.Join("..", dockerfile))
	if err != nil {
		t.Fatal(err)
	}
	found := regexp.MustCompile(`(?m)^HEALTHCHECK .*CMD (\[.*\])$`).FindSubmatch(content)
	var command []string
	if found == nil || json.Unmarshal(found[1], &command) != nil {
		t.Fatalf("%s has no health check that can be read", dockerfile)
	}
	return command
}

// TestComposeFileHasTheHealthChecksOfTheImages: podman and images in OCI's format drop the health
// checks of images, and then Compose cannot wait for a service. So the Compose file repeats the
// checks.
func TestComposeFileHasTheHealthChecksOfTheImages(t *testing.T) {
	t.Parallel()
	services := composeServices(t)
	for name, want := range map[string][]string{
		"rabbitmq":   {"rabbitmq-diagnostics", "-q", "check_port_connectivity"}, // the official image has no check
		"rpc-server": imageHealthcheck(t, services["rpc-server"].Build.Dockerfile),
		"rpc-client": imageHealthcheck(t, services["rpc-client"].Build.Dockerfile),
	} {
		check := services[name].Healthcheck
		if !slices.Equal(check.Test, append([]string{"CMD"}, want...)) || check.Disable {
			t.Errorf("the health check of %s is %q, disabled %v; want %q", name, check.Test, check.Disable, want)
		}
	}
	if condition := services["rpc-client"].DependsOn["rpc-server"].Condition; condition != "service_healthy" {
		t.Errorf("rpc-client starts at the condition %q of rpc-server", condition)
	}
	if waits := services["rpc-client"].DependsOn; len(waits) != 1 {
		t.Errorf("rpc-client waits for %v: with a second condition, bad settings of the server end compose up late (ADR 17)", waits)
	}
}

// TestComposeServicesAreHardened: no service of the Compose file has rights or memory without
// need, and the broker is reachable from this machine only.
func TestComposeServicesAreHardened(t *testing.T) {
	t.Parallel()
	for name, s := range composeServices(t) {
		if !slices.Equal(s.CapDrop, []string{"ALL"}) || !slices.Equal(s.SecurityOpt, []string{"no-new-privileges:true"}) ||
			s.MemLimit == "" || s.Logging.Options["max-size"] == "" || s.Logging.Options["max-file"] == "" {
			t.Errorf("%s is not hardened: %+v", name, s)
		}
		if broker := name == "rabbitmq"; broker && s.User != "rabbitmq" || !broker && !s.ReadOnly {
			t.Errorf("%s may write where it need not: %+v", name, s)
		}
		for _, port := range s.Ports {
			if !strings.HasPrefix(port, "127.0.0.1:") {
				t.Errorf("%s publishes %s to other machines", name, port)
			}
		}
	}
}

// TestComposeClientsWriteSeparateReports: scaled clients share a volume.
func TestComposeClientsWriteSeparateReports(t *testing.T) {
	t.Parallel()
	if dir := composeServices(t)["rpc-client"].Environment["RPC_REPORT_DIR"]; !strings.HasSuffix(dir, "/{hostname}") {
		t.Errorf("every client writes its report to %s", dir)
	}
}
