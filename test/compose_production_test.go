package test

import (
	"os"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

// overlayService is the checked part of a service in an overlay.
type overlayService struct {
	composeService `yaml:",inline"`

	Entrypoint, Command, Volumes []string
	NetworkMode                  string `yaml:"network_mode"`
}

// overlayServices returns the services of an overlay.
func overlayServices(t *testing.T, path string) map[string]overlayService {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var file struct{ Services map[string]overlayService }
	if err := yaml.Unmarshal(content, &file); err != nil {
		t.Fatal(err)
	}
	return file.Services
}

// TestProductionOverlay: each service mounts only its own secrets, and no password is in the
// environment.
func TestProductionOverlay(t *testing.T) {
	t.Parallel()
	services := overlayServices(t, "../compose/production.yml")
	for name, volume := range map[string]string{
		"rpc-server": "secrets-of-server:/secrets:ro",
		"rpc-client": "secrets-of-client:/secrets:ro",
	} {
		s := services[name]
		if !slices.Equal(s.Volumes, []string{volume}) {
			t.Errorf("%s mounts %v", name, s.Volumes)
		}
		for variable, want := range map[string]string{
			"AMQP_URL": "", "AMQP_URL_FILE": "/secrets/amqp-url",
		} {
			if got, set := s.Environment[variable]; !set || got != want {
				t.Errorf("%s has %s=%q, want %q", name, variable, got, want)
			}
		}
	}
	server := services["rpc-server"].Environment
	for _, variable := range []string{
		"RPC_AUTHORIZATION_FILE", "RPC_REPLY_PREFIX", "RPC_QUEUE_MAX_LENGTH", "RPC_QUEUE_MAX_BYTES",
		"RPC_CALLER_MAX_CALLS", "RPC_CALLER_MAX_BYTES", "RPC_CALLER_MAX_RUNNING",
	} {
		if server[variable] == "" {
			t.Errorf("rpc-server has no %s", variable)
		}
	}
	if got := services["rpc-client"].Environment["RPC_EXCHANGE"]; got != "${RPC_QUEUE:-rpc_queue}.rpc" {
		t.Errorf("rpc-client publishes to the exchange %q", got)
	}
	broker := services["rabbitmq"]
	if !slices.Equal(broker.Volumes, []string{"./compose/production/rabbitmq.conf:/etc/rabbitmq/conf.d/40-production.conf:ro", "definitions:/definitions:ro"}) {
		t.Errorf("the broker mounts %v", broker.Volumes)
	}
	for _, name := range []string{"rabbitmq", "rpc-server"} {
		if services[name].DependsOn["definitions"].Condition != "service_completed_successfully" {
			t.Errorf("%s does not wait for its files", name)
		}
	}
	maker := services["definitions"]
	if !maker.ReadOnly || !slices.Equal(maker.CapDrop, []string{"ALL"}) || !slices.Equal(maker.SecurityOpt, []string{"no-new-privileges:true"}) ||
		maker.MemLimit == "" || !maker.Healthcheck.Disable || maker.NetworkMode != "none" {
		t.Errorf("definitions is not hardened: %+v", maker)
	}
	if maker.Entrypoint[0] != "/rpc-definitions" || len(maker.Command) > 0 {
		t.Errorf("definitions runs %v %v", maker.Entrypoint, maker.Command)
	}
	image, err := os.ReadFile("../Dockerfile.server")
	if err != nil || !strings.Contains(string(image), " /out/rpc-definitions ") {
		t.Errorf("the image of the server has no rpc-definitions: %v", err)
	}
}

// TestProductionOverlayOfTheBroker: the broker imports the definitions, and nobody logs in without
// a password.
func TestProductionOverlayOfTheBroker(t *testing.T) {
	t.Parallel()
	content, err := os.ReadFile("../compose/production/rabbitmq.conf")
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(string(content), "\n")
	for _, want := range []string{"load_definitions = /definitions/definitions.json", "auth_mechanisms.1 = PLAIN", "channel_max = 16"} {
		if !slices.Contains(lines, want) {
			t.Errorf("no line %q", want)
		}
	}
	if strings.Contains(string(content), "auth_mechanisms.2") {
		t.Error("there is another way to log in")
	}
}
