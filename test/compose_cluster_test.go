package test

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

// clusterService is the checked part of a service in compose/cluster.yml.
type clusterService struct {
	composeService `yaml:",inline"`

	Image, Hostname  string
	Command, Volumes []string
}

// TestClusterOverlay: three nodes with data of their own and a common cookie, and services that
// know all of them.
func TestClusterOverlay(t *testing.T) {
	t.Parallel()
	content, err := os.ReadFile("../compose/cluster.yml")
	if err != nil {
		t.Fatal(err)
	}
	var file struct{ Services map[string]clusterService }
	if err := yaml.Unmarshal(content, &file); err != nil {
		t.Fatal(err)
	}
	conf := read(t, "../compose/cluster/rabbitmq.conf")
	var urls []string
	for i, name := range []string{"rabbitmq", "rabbitmq-2", "rabbitmq-3"} {
		s := file.Services[name]
		for _, volume := range []string{"./compose/cluster:/cluster:ro", "erlang-cookie:/cookie:ro"} {
			if !slices.Contains(s.Volumes, volume) {
				t.Errorf("%s does not mount %s", name, volume)
			}
		}
		if !slices.Equal(s.Command, []string{"/cluster/node.sh"}) || !slices.Equal(s.Healthcheck.Test, []string{"CMD", "/cluster/health.sh"}) {
			t.Errorf("%s runs %v and is checked by %v", name, s.Command, s.Healthcheck.Test)
		}
		if server := file.Services["rpc-server"]; server.DependsOn[name].Condition != "service_healthy" {
			t.Errorf("rpc-server does not wait for %s, and declares a quorum queue without a member there", name)
		}
		if s.DependsOn["erlang-cookie"].Condition != "service_completed_successfully" {
			t.Errorf("%s does not wait for the cookie", name)
		}
		if i > 0 && (s.Hostname != name || s.User != "rabbitmq" || s.MemLimit == "" || !slices.Equal(s.CapDrop, []string{"ALL"}) || len(s.Ports) > 0) {
			t.Errorf("%s is not like the first node: %+v", name, s)
		}
		if want := "nodes." + string(rune('1'+i)) + " = rabbit@" + name + "\n"; !strings.Contains(conf, want) {
			t.Errorf("no line %q", want)
		}
		urls = append(urls, "amqp://guest:guest@"+name+":5672")
	}
	for _, name := range []string{"rpc-server", "rpc-client"} {
		env := file.Services[name].Environment
		if env["AMQP_URL"] != "${AMQP_URL_IN_COMPOSE:-"+strings.Join(urls, ",")+"}" || env["RPC_QUEUE_TYPE"] != "${RPC_QUEUE_TYPE:-quorum}" {
			t.Errorf("%s has %v", name, env)
		}
	}
	var definitions struct {
		Vhosts []struct {
			Metadata struct {
				Type string `json:"default_queue_type"`
			} `json:"metadata"`
		} `json:"vhosts"`
	}
	if err := json.Unmarshal([]byte(read(t, "../compose/cluster/definitions.json")), &definitions); err != nil || definitions.Vhosts[0].Metadata.Type != "quorum" {
		t.Errorf("definitions: %+v, %v", definitions, err)
	}
}

// TestOverlaysOfACluster: a node of the overlay cluster refuses to start, before it touches its data, if the
// overlay production has put its settings into the node; other overlays may.
func TestOverlaysOfACluster(t *testing.T) {
	t.Parallel()
	const refusal = "the overlays cluster and production cannot be used together: 40-production.conf imports users"
	for name, c := range map[string]struct {
		files   map[string]string // the file in the node and where it comes from
		refusal string
	}{
		"none":           {},
		"tls":            {files: map[string]string{"30-tls.conf": "../compose/tls/rabbitmq.conf"}},
		"production":     {map[string]string{"40-production.conf": "../compose/production/rabbitmq.conf"}, refusal},
		"tls production": {map[string]string{"30-tls.conf": "../compose/tls/rabbitmq.conf", "40-production.conf": "../compose/production/rabbitmq.conf"}, refusal},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			conf := t.TempDir()
			for file, from := range c.files {
				write(t, filepath.Join(conf, file), read(t, from))
			}
			out, err := exec.CommandContext(t.Context(), "../compose/cluster/overlays-check.sh", conf, "rabbit@n").CombinedOutput()
			if (err == nil) != (c.refusal == "") || !strings.Contains(string(out), c.refusal) || err == nil && len(out) > 0 {
				t.Errorf("%v: %s", err, out)
			}
		})
	}
	production, node := read(t, "../compose/production.yml"), read(t, "../compose/cluster/node.sh")
	if !strings.Contains(production, ":/etc/rabbitmq/conf.d/40-production.conf:ro") {
		t.Error("the overlay production does not put its settings where the nodes look")
	}
	check, data := strings.Index(node, `/overlays-check.sh" /etc/rabbitmq/conf.d "$node"`), strings.Index(node, "/upgrade-check.sh")
	if check < 0 || data < check {
		t.Error("a node does not check the overlays before it touches its data")
	}
}

func read(t *testing.T, file string) string {
	t.Helper()
	content, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}

// flags returns the Erlang source of the module with the feature flags of a RabbitMQ, of which one
// has the given stability.
func flags(stability string) string {
	return `-module(rabbit_core_ff).
-rabbit_feature_flag({old, #{stability => ` + stability + `}}).
-rabbit_feature_flag({new, #{stability => stable}}).
-rabbit_feature_flag({khepri_db, #{stability => experimental}}).
`
}

// TestUpgradeCheck asks the script about the paths of RabbitMQ's documentation. It needs Erlang.
func TestUpgradeCheck(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("erlc"); err != nil {
		t.Fatal("erlc is missing: install the package erlang-base, as deploy/need.sh erlc does")
	}
	const both = "[old,new]."
	beams := map[bool]string{true: compile(t, "rabbit_core_ff", flags("required")), false: compile(t, "rabbit_core_ff", flags("stable"))}
	app := compile(t, "rabbit_mgmt_app", "-module(rabbit_mgmt_app).\n-rabbit_feature_flag({elsewhere, #{stability => stable}}).\n")
	for name, c := range map[string]struct {
		old, new string // versions; old "": not recorded
		enabled  string // the feature flags of the data; "": no data
		required bool   // the new version requires the flag old
		refusal  string // "": none
	}{
		"no data":               {"", "4.0.5", "", true, ""},
		"a flag of an app":      {"4.0.5", "4.0.5", "[old,new,elsewhere].", true, ""},
		"restart":               {"3.10.8", "3.10.8", both, false, ""},
		"patch":                 {"3.13.1", "3.13.7", both, true, ""},
		"patch back":            {"3.13.7", "3.13.1", both, true, "does not support the way back to 3.13.1"},
		"next series":           {"3.10.8", "3.11.28", both, true, ""},
		"3.11 before 18":        {"3.11.5", "3.12.1", both, true, "upgrade to 3.11.18 or later"},
		"3.11.18":               {"3.11.18", "3.12.1", both, true, ""},
		"3.13 to 4.0":           {"3.13.7", "4.0.5", both, true, ""},
		"3.13 to 4.2":           {"3.13.7", "4.2.0", both, true, ""},
		"4.0 to 4.1":            {"4.0.5", "4.1.0", both, true, ""},
		"3.10 to 4.0":           {"3.10.8", "4.0.5", both, true, "one series at a time"},
		"3.12 to 4.0":           {"3.12.1", "4.0.5", both, true, "one series at a time"},
		"4 to 3":                {"4.0.5", "3.13.7", both, true, "does not support the way back"},
		"a later path":          {"4.2.0", "4.3.0", both, true, ""},
		"missing flags":         {"3.13.7", "4.0.5", "[new].", true, "requires feature flags that are not enabled in its data (RabbitMQ 3.13.7): old."},
		"missing, no version":   {"", "4.0.5", "[new].", true, "requires feature flags"},
		"unknown flags":         {"", "3.10.8", "[old,new,newer].", false, "does not know: newer"},
		"Khepri of 3.13":        {"3.13.7", "4.0.5", "[old,new,khepri_db].", true, "Khepri of RabbitMQ 3.13"},
		"unreadable flags":      {"4.0.5", "4.0.5", "[old", true, "requires feature flags"},
		"10 is later than 9":    {"3.9.1", "3.10.8", both, true, ""},
		"version of data alone": {"3.10.8", "3.10.8", "[].", false, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			ebin, data := filepath.Join(dir, "plugins", "rabbit-"+c.new, "ebin"), filepath.Join(dir, "home", "mnesia")
			for _, d := range []string{ebin, data} {
				if err := os.MkdirAll(d, 0o700); err != nil {
					t.Fatal(err)
				}
			}
			write(t, filepath.Join(ebin, "rabbit_core_ff.beam"), beams[c.required])
			write(t, filepath.Join(ebin, "rabbit_mgmt_app.beam"), app)
			if c.enabled != "" {
				write(t, filepath.Join(data, "rabbit@n-feature_flags"), c.enabled)
			}
			if c.old != "" {
				write(t, filepath.Join(dir, "home", "rabbitmq-version"), c.old+"\n")
			}
			check := exec.CommandContext(t.Context(), "../compose/cluster/upgrade-check.sh", data, "rabbit@n")
			check.Env = append(os.Environ(), "RABBITMQ_ROOT="+filepath.Join(dir, "plugins"))
			out, err := check.CombinedOutput()
			if (err == nil) != (c.refusal == "") || !strings.Contains(string(out), c.refusal) {
				t.Errorf("%v: %s", err, out)
			}
		})
	}
}

// compile returns the compiled module of that source.
func compile(t *testing.T, module, source string) string {
	t.Helper()
	dir := t.TempDir()
	file := filepath.Join(dir, module+".erl")
	write(t, file, source)
	if out, err := exec.CommandContext(t.Context(), "erlc", "-o", dir, file).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return read(t, filepath.Join(dir, module+".beam"))
}

func write(t *testing.T, file, content string) {
	t.Helper()
	if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}
