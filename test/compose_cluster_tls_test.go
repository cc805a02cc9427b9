package test

import (
	"maps"
	"slices"
	"strings"
	"testing"
)

// merged returns the services of files as Compose merges them: maps by their keys, lists of volumes one
// after the other, and a command as a whole.
func merged(t *testing.T, files ...string) map[string]overlayService {
	t.Helper()
	all := map[string]overlayService{}
	for _, file := range files {
		for name, s := range overlayServices(t, file) {
			before := all[name]
			s.Volumes = append(slices.Clone(before.Volumes), s.Volumes...)
			if s.Command == nil {
				s.Command = before.Command
			}
			environment, needs := maps.Clone(before.Environment), maps.Clone(before.DependsOn)
			if environment == nil {
				environment, needs = s.Environment, s.DependsOn
			} else {
				maps.Copy(environment, s.Environment)
				if needs == nil {
					needs = s.DependsOn
				} else {
					maps.Copy(needs, s.DependsOn)
				}
			}
			s.Environment, s.DependsOn = environment, needs
			all[name] = s
		}
	}
	return all
}

// TestClusterWithTLS: with the overlays tls, cluster and cluster-tls each node has the listener for TLS, the
// certificate and the settings of a cluster, and the services know all nodes by TLS only.
func TestClusterWithTLS(t *testing.T) {
	t.Parallel()
	files := []string{"../docker-compose.yml", "../compose/tls.yml", "../compose/cluster.yml", "../compose/cluster-tls.yml"}
	services := merged(t, files...)
	var urls []string
	for _, name := range []string{"rabbitmq", "rabbitmq-2", "rabbitmq-3"} {
		s := services[name]
		for _, volume := range []string{
			"./compose/tls/rabbitmq.conf:/etc/rabbitmq/conf.d/30-tls.conf:ro", "certificates-of-broker:/certificates:ro",
			"./compose/cluster:/cluster:ro", "erlang-cookie:/cookie:ro",
		} {
			if n := strings.Count(strings.Join(s.Volumes, "\n"), volume); n != 1 {
				t.Errorf("%s mounts %s %d times", name, volume, n)
			}
		}
		for _, need := range []string{"certificates", "erlang-cookie"} {
			if s.DependsOn[need].Condition != "service_completed_successfully" {
				t.Errorf("%s does not wait for %s", name, need)
			}
		}
		if !slices.Equal(s.Command, []string{"/cluster/node.sh"}) {
			t.Errorf("%s runs %v", name, s.Command)
		}
		if !slices.Contains(services["certificates"].Command, name) {
			t.Errorf("the certificate does not have the name %s", name)
		}
		if services["rpc-server"].DependsOn[name].Condition != "service_healthy" {
			t.Errorf("rpc-server does not wait for %s", name)
		}
		urls = append(urls, "amqps://guest:guest@"+name+":5671")
	}
	for _, name := range []string{"rpc-server", "rpc-client"} {
		env := services[name].Environment
		if env["AMQP_URL"] != "${AMQPS_URL_IN_COMPOSE:-"+strings.Join(urls, ",")+"}" || env["AMQP_TLS_KEY_FILE"] == "" || env["RPC_QUEUE_TYPE"] != "${RPC_QUEUE_TYPE:-quorum}" {
			t.Errorf("%s has %v", name, env)
		}
	}
	// node.sh takes over what other overlays mount, and the listener without TLS is off.
	if start := read(t, "../compose/cluster/node.sh"); !strings.Contains(start, "/etc/rabbitmq/conf.d/*.conf") {
		t.Error("node.sh ignores the settings of other overlays")
	}
	if manual := read(t, "../docs/operations.md"); !strings.Contains(manual, strings.ReplaceAll("-f "+strings.Join(files, " -f "), "../", "")) {
		t.Error("docs/operations.md does not have the command")
	}
}
