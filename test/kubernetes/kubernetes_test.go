package kubernetes

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"sigs.k8s.io/kustomize/kyaml/filesys"
)

const (
	single     = "single"
	production = "production"
)

func TestOverlays(t *testing.T) {
	t.Parallel()
	programs := buildPrograms(t)
	project := readProject(t, programs)
	for _, name := range []string{single, production} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o, err := build(sources(t), name)
			if err != nil {
				t.Fatal(err)
			}
			for _, fault := range o.check(project) {
				t.Error(fault)
			}
			acceptSettings(t, o, project, programs)
		})
	}
	for _, m := range mutations() {
		t.Run(m.name, func(t *testing.T) {
			t.Parallel()
			files := sources(t)
			m.apply(t, files)
			o, err := build(files, m.overlay)
			if err != nil {
				t.Fatal(err)
			}
			faults := strings.Join(o.check(project), "\n")
			if !strings.Contains(faults, m.want) {
				t.Errorf("want a fault with %q:\n%s", m.want, faults)
			}
		})
	}
}

// acceptSettings runs the command check of each service with the variables of its pod.
func acceptSettings(t *testing.T, o *overlay, project *project, programs string) {
	t.Helper()
	broker, services := t.TempDir(), t.TempDir()
	made := exec.CommandContext(t.Context(), filepath.Join(programs, "rpc-certificates"), broker, services, "rabbitmq")
	if out, err := made.CombinedOutput(); err != nil {
		t.Fatalf("rpc-certificates: %v\n%s", err, out)
	}
	url := filepath.Join(t.TempDir(), "url")
	if err := os.WriteFile(url, []byte("amqps://user:password@rabbitmq:5671"), 0o600); err != nil {
		t.Fatal(err)
	}
	if o.name == single {
		if err := os.WriteFile(url, o.secrets["rpc-server-broker"].Data["url"], 0o600); err != nil {
			t.Fatal(err)
		}
	}
	files := map[string]string{
		"AMQP_URL_FILE": url, "AMQP_TLS_CA_FILE": filepath.Join(services, "ca.pem"),
		"AMQP_TLS_CERT_FILE": filepath.Join(services, "cert.pem"), "AMQP_TLS_KEY_FILE": filepath.Join(services, "key.pem"),
		"RPC_AUTHORIZATION_FILE": filepath.Join(services, "authorization.json"),
	}
	c := &checker{overlay: o, project: project}
	if err := os.WriteFile(files["RPC_AUTHORIZATION_FILE"], []byte(c.rulesOfMethods("authorization.json")), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, p := range o.pods() {
		if p.template == nil || c.service(p) == nil {
			continue
		}
		check := exec.CommandContext(t.Context(), filepath.Join(programs, p.name), "check")
		for name, value := range c.given(p) {
			if file, found := files[name]; found {
				value = file
			}
			check.Env = append(check.Env, name+"="+value)
		}
		if out, err := check.CombinedOutput(); err != nil {
			t.Errorf("%s does not take the settings %q: %v\n%s", p.name, check.Env, err, out)
		}
	}
}

// mutation is a change of a file that a check must find.
type mutation struct {
	name, overlay, file, old, changed, want string
}

func (m mutation) apply(t *testing.T, files filesys.FileSystem) {
	t.Helper()
	content, err := files.ReadFile(m.file)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(content), m.old) {
		t.Fatalf("%s does not contain %q", m.file, m.old)
	}
	if err := files.WriteFile(m.file, []byte(strings.Replace(string(content), m.old, m.changed, 1))); err != nil {
		t.Fatal(err)
	}
}

func mutations() []mutation {
	const (
		server      = "/base/server.yaml"
		client      = "/base/client.yaml"
		base        = "/base/kustomization.yaml"
		broker      = "/overlays/production/rabbitmq.yaml"
		topology    = "/overlays/production/topology.yaml"
		autoscaling = "/overlays/production/autoscaling.yaml"
		policies    = "/overlays/production/network-policy.yaml"
		monitors    = "/overlays/production/service-monitor.yaml"
		tls         = "/overlays/production/tls-server.yaml"
		callers     = "/overlays/production/callers.yaml"
		rules       = "/overlays/production/authorization.json"
	)
	return []mutation{
		{"unknown field", single, server, "progressDeadlineSeconds", "progressDeadline", `unknown field "spec.progressDeadline"`},
		{"unknown field of a custom resource", production, broker, "disableNonTLSListeners", "disableNonTlsListeners", "forbidden property"},
		{"value of a custom resource", production, autoscaling, "currentReplicasIfHigher", "higher", "should be one of"},
		{"unknown field of a monitor", production, monitors, "scrapeTimeout", "timeout", "unknown field"},
		{"variable", single, server, "name: RPC_DRAIN_TIMEOUT", "name: RPC_DRAIN_TIME", "RPC_DRAIN_TIME is no setting"},
		{"variable of the other service", single, client, "RPC_CALLS", "RPC_WORKERS", "RPC_WORKERS is no setting"},
		{"shared variable", single, base, "RPC_QUEUE_TYPE", "RPC_QUEUE_KIND", "RPC_QUEUE_KIND is no setting"},
		{"image", single, server, "image: rabbitmq-rpc/server", "image: rabbitmq-rpc/servers", "the image is"},
		{"path of a probe", single, server, "path: /livez", "path: /healthz", "does not ask for /livez"},
		{"port of a probe", single, server, "port: http", "port: web", "asks the port web"},
		{"port", single, server, "containerPort: 8080", "containerPort: 8081", "listens on 8080"},
		{"grace", single, server, "terminationGracePeriodSeconds: 30", "terminationGracePeriodSeconds: 20", "the pod needs 25s"},
		{"drain", single, server, "value: 20s", "value: 40s", "the pod needs 45s"},
		{"grace of the client", single, client, "terminationGracePeriodSeconds: 45", "terminationGracePeriodSeconds: 30", "the pod needs 35s"},
		{"capabilities", single, server, "drop: [ALL]", "drop: [KILL]", "unrestricted capabilities"},
		{"root", single, server, "runAsNonRoot: true", "runAsNonRoot: false", "runAsNonRoot"},
		{"seccomp", single, client, "type: RuntimeDefault", "type: Unconfined", "seccompProfile"},
		{"root file system", single, server, "readOnlyRootFilesystem: true", "readOnlyRootFilesystem: false", "can be written"},
		{"token", single, server, "automountServiceAccountToken: false", "automountServiceAccountToken: true", "token of the API"},
		{"subPath", single, server, "mountPath: /secrets/broker", "mountPath: /secrets/broker\n              subPath: url", "with subPath"},
		{"file", single, server, "value: /secrets/broker/url", "value: /secrets/broker/uri", "no key of a mounted Secret"},
		{"key", single, server, "key: url", "key: uri", "has no key uri"},
		{"secret", single, server, "secretName: rpc-server-broker", "secretName: rpc-server-url", "makes the Secret"},
		{"file of TLS", production, tls, "/secrets/tls/ca.crt", "/secrets/tls/ca.pem", "no key of a mounted Secret"},
		{"no TLS", production, tls, "AMQP_TLS_CERT_FILE", "AMQP_TLS_SERVER_NAME", "AMQP_TLS_CERT_FILE is not set"},
		{"memory", single, server, "memory: 256Mi", "memory: 160Mi", "Go's memory limit"},
		{"GOMEMLIMIT", single, base, "LOG_FORMAT=json", "GOMEMLIMIT=256MiB", "GOMEMLIMIT 256MiB"},
		{"no limit", single, server, "limits:\n              memory: 256Mi", "limits: {}", "the limit is 0"},
		{"budget", single, server, "kind: PodDisruptionBudget\nmetadata:\n  name: rpc-server\nspec:\n  maxUnavailable: 1", "kind: PodDisruptionBudget\nmetadata:\n  name: rpc-server\nspec:\n  maxUnavailable: 0", "does not let one pod go"},
		{"affinity of the cluster", production, broker, "name: rabbitmq\n---", "name: rabbit\n---", "the affinity"},
		{"selector of the Service", single, server, "clusterIP: None\n  selector:\n    app.kubernetes.io/name: rpc-server", "clusterIP: None\n  selector:\n    app.kubernetes.io/name: server", "the Service rpc-server selects 0"},
		{"selector of a policy", production, policies, "app.kubernetes.io/name: rpc-server", "app.kubernetes.io/name: server", "rpc-server has no NetworkPolicy"},
		{"port of a policy", production, policies, "port: 5671", "port: 5672", "has no port 5672"},
		{"selector of a monitor", production, monitors, "app.kubernetes.io/name: rpc-server", "app.kubernetes.io/name: server", "selects no Service with the port http"},
		{"port of a monitor", production, monitors, "port: prometheus-tls", "port: prometheus", "selects no Service with the port prometheus"},
		{"path of a monitor", production, monitors, "path: /metrics", "path: /metric", "does not serve /metric"},
		{"native histograms of a monitor", production, "/overlays/production/kustomization.yaml", "name: METRICS_NATIVE_HISTOGRAMS\n          value: \"true\"", "name: METRICS_NATIVE_HISTOGRAMS\n          value: \"false\"", "scrapes native histograms"},
		{"replicas beside the autoscaler", production, "/overlays/production/kustomization.yaml", "op: remove\n        path: /spec/replicas", "op: replace\n        path: /spec/replicas\n        value: 3", "no Deployment without replicas"},
		{"queue of the autoscaler", production, autoscaling, "queueName: rpc_queue", "queueName: queue", "looks at the queue queue"},
		{"authentication of the autoscaler", production, autoscaling, "key: tls.crt", "key: cert", "has no key cert"},
		{"permissions", production, topology, `rpc_queue\.control\..+`, `.*`, "the permissions of rpc-server"},
		{"file of the rules", production, callers, "value: /config/authorization/authorization.json", "value: /config/authorization.json", "no key of a mounted Secret or ConfigMap"},
		{"no limit of a caller", production, callers, "name: RPC_CALLER_MAX_BYTES", "name: RPC_MAX_BYTES_IN_HAND", "RPC_CALLER_MAX_BYTES=0 does not limit"},
		{"calls of a caller", production, callers, `value: "64"`, `value: "128"`, "fills the prefetch of 128"},
		{"handlers of a caller", production, callers, `value: "32"`, `value: "64"`, "has all 64 workers"},
		{"user of the rules", production, rules, "rpc-client", "rpc-autoscaler", "the users who may call are"},
		{"rules", production, rules, "methods", "functions", "the authorization rules"},
		{"message size", production, broker, "max_message_size = 16777216", "max_message_size = 1048576", "RPC_MAX_MESSAGE_BYTES"},
		{"nodes", production, broker, "replicas: 3", "replicas: 2", "2 nodes"},
		{"queue type", production, "/overlays/production/kustomization.yaml", "RPC_QUEUE_TYPE=quorum", "RPC_QUEUE_TYPE=classic", "RPC_QUEUE_TYPE=classic"},
	}
}
