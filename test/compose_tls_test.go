package test

import (
	"os"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

// tlsService is the checked part of a service in compose/tls.yml.
type tlsService struct {
	composeService `yaml:",inline"`

	Entrypoint, Command, Volumes []string
}

// TestTLSOverlay: the services verify the broker and send a certificate, the broker accepts
// nothing else, and each side sees only its own key.
func TestTLSOverlay(t *testing.T) {
	t.Parallel()
	content, err := os.ReadFile("../compose/tls.yml")
	if err != nil {
		t.Fatal(err)
	}
	var file struct{ Services map[string]tlsService }
	if err := yaml.Unmarshal(content, &file); err != nil {
		t.Fatal(err)
	}
	const ofServices, ofBroker = "certificates-of-services:", "certificates-of-broker:"
	for _, name := range []string{"rpc-server", "rpc-client"} {
		s := file.Services[name]
		if !strings.Contains(s.Environment["AMQP_URL"], ":-amqps://guest:guest@rabbitmq:5671}") {
			t.Errorf("%s connects to %s", name, s.Environment["AMQP_URL"])
		}
		for variable, want := range map[string]string{"AMQP_TLS_CA_FILE": "ca", "AMQP_TLS_CERT_FILE": "cert", "AMQP_TLS_KEY_FILE": "key"} {
			if got := s.Environment[variable]; got != "/certificates/"+want+".pem" {
				t.Errorf("%s has %s=%s", name, variable, got)
			}
		}
		if !slices.Equal(s.Volumes, []string{ofServices + "/certificates:ro"}) {
			t.Errorf("%s mounts %v", name, s.Volumes)
		}
	}
	broker := file.Services["rabbitmq"]
	if !slices.Equal(broker.Volumes, []string{"./compose/tls/rabbitmq.conf:/etc/rabbitmq/conf.d/30-tls.conf:ro", ofBroker + "/certificates:ro"}) {
		t.Errorf("the broker mounts %v", broker.Volumes)
	}
	if broker.DependsOn["certificates"].Condition != "service_completed_successfully" {
		t.Error("the broker does not wait for its certificates")
	}
	for _, port := range broker.Ports {
		if !strings.HasPrefix(port, "127.0.0.1:") {
			t.Errorf("the broker publishes %s to other machines", port)
		}
	}
	maker := file.Services["certificates"]
	if !maker.ReadOnly || !slices.Equal(maker.CapDrop, []string{"ALL"}) || maker.MemLimit == "" || !maker.Healthcheck.Disable {
		t.Errorf("certificates is not hardened: %+v", maker)
	}
	if !slices.Equal(maker.Entrypoint, []string{"/rpc-certificates"}) || !slices.Contains(maker.Command, "rabbitmq") {
		t.Errorf("certificates runs %v %v", maker.Entrypoint, maker.Command)
	}
	image, err := os.ReadFile("../Dockerfile.server")
	if err != nil || !strings.Contains(string(image), " /out/rpc-certificates ") {
		t.Errorf("the image of the server has no rpc-certificates: %v", err)
	}
}

// TestTLSOverlayOfTheBroker: without TLS, or without a certificate, nobody connects.
func TestTLSOverlayOfTheBroker(t *testing.T) {
	t.Parallel()
	content, err := os.ReadFile("../compose/tls/rabbitmq.conf")
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(string(content), "\n")
	for _, want := range []string{
		"listeners.tcp = none", "listeners.ssl.default = 5671", "ssl_options.verify = verify_peer",
		"ssl_options.fail_if_no_peer_cert = true", "ssl_options.versions.1 = tlsv1.3", "ssl_options.versions.2 = tlsv1.2",
		"ssl_options.cacertfile = /certificates/ca.pem", "ssl_options.certfile = /certificates/cert.pem", "ssl_options.keyfile = /certificates/key.pem",
	} {
		if !slices.Contains(lines, want) {
			t.Errorf("no line %q", want)
		}
	}
}
