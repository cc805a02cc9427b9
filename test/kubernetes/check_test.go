package kubernetes

import (
	"fmt"
	"maps"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	core "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/pod-security-admission/api"
	podsecurity "k8s.io/pod-security-admission/policy"
	"sigs.k8s.io/yaml"
)

// project is what the overlays are compared with.
type project struct {
	settings    map[string]map[string]string // by service: the documented variables and their defaults
	paths       map[string][]string          // by service: the paths that a running process serves
	images      map[string]string            // by service of the Compose file, without tag
	permissions map[string][3]string         // by user, from the manual: configure, write, read
	secrets     map[string][]string          // keys of the Secrets that docs/kubernetes.md creates
}

// margin is the time that a process may take to end beside its drain.
const margin = 5 * time.Second

// check returns the faults of an overlay.
func (o *overlay) check(p *project) []string {
	c := &checker{overlay: o, project: p, faults: slices.Clone(o.faults)}
	for _, pod := range o.pods() {
		if pod.template == nil {
			continue
		}
		c.checkSecurity(pod)
		c.checkFiles(pod)
		c.checkMemory(pod)
		if c.service(pod) != nil {
			c.checkService(pod)
		}
	}
	c.checkSelectors()
	c.checkBroker()
	c.checkAutoscaling()
	c.checkCallers()
	return c.faults
}

type checker struct {
	*overlay
	*project

	faults []string
}

func (c *checker) addf(format string, args ...any) {
	c.faults = append(c.faults, c.name+": "+fmt.Sprintf(format, args...))
}

// service returns the container of one of the project's services, or nil.
func (c *checker) service(p pod) *core.Container {
	if _, found := c.settings[p.name]; !found {
		return nil
	}
	return &p.template.Spec.Containers[0]
}

// environment returns the variables of a service with the ConfigMaps and the defaults.
func (c *checker) environment(p pod) map[string]string {
	variables := maps.Clone(c.settings[p.name])
	maps.Copy(variables, c.given(p))
	return variables
}

// given returns the variables of a service without defaults.
func (c *checker) given(p pod) map[string]string {
	variables := make(map[string]string)
	container := c.service(p)
	for _, from := range container.EnvFrom {
		if m := c.configMaps[from.ConfigMapRef.Name]; m != nil {
			maps.Copy(variables, m.Data)
		} else {
			c.addf("%s: there is no ConfigMap %s", p.name, from.ConfigMapRef.Name)
		}
	}
	for _, v := range container.Env {
		variables[v.Name] = v.Value
	}
	return variables
}

// checkService compares a pod with the service that runs in it.
func (c *checker) checkService(p pod) {
	container, template := c.service(p), p.template
	for name := range c.given(p) {
		if _, found := c.settings[p.name][name]; !found {
			c.addf("%s: %s is no setting of this service", p.name, name)
		}
	}
	if image, _, _ := strings.Cut(container.Image, ":"); image != c.images[p.name] {
		c.addf("%s: the image is %s, that of the Compose file %s", p.name, container.Image, c.images[p.name])
	}
	_, port, _ := strings.Cut(c.environment(p)["HTTP_ADDR"], ":")
	if listens := strconv.Itoa(int(p.ports["http"])); listens != port {
		c.addf("%s: the port http is %s, and the service listens on %s", p.name, listens, port)
	}
	probes := map[string]*core.Probe{"livenessProbe": container.LivenessProbe, "readinessProbe": container.ReadinessProbe}
	wanted := map[string]string{"livenessProbe": "/livez", "readinessProbe": "/readyz"}
	for name, probe := range probes {
		job := name == "readinessProbe" && c.jobs[p.name] != nil
		switch {
		case job && probe == nil:
		case probe == nil || probe.HTTPGet == nil || probe.HTTPGet.Path != wanted[name]:
			c.addf("%s: the %s does not ask for %s", p.name, name, wanted[name])
		case !slices.Contains(c.paths[p.name], probe.HTTPGet.Path):
			c.addf("%s: the service does not serve %s", p.name, probe.HTTPGet.Path)
		case p.ports[probe.HTTPGet.Port.StrVal] == 0:
			c.addf("%s: the %s asks the port %s", p.name, name, probe.HTTPGet.Port.String())
		}
	}
	c.checkGrace(p)
	if template.Spec.AutomountServiceAccountToken == nil || *template.Spec.AutomountServiceAccountToken ||
		template.Spec.EnableServiceLinks == nil || *template.Spec.EnableServiceLinks {
		c.addf("%s: the pod gets a token of the API, or variables of Services", p.name)
	}
	if s := container.SecurityContext; s == nil || s.ReadOnlyRootFilesystem == nil || !*s.ReadOnlyRootFilesystem {
		c.addf("%s: the root file system can be written", p.name)
	}
}

// checkGrace: a pod is killed only after its drain, or after the calls in flight.
func (c *checker) checkGrace(p pod) {
	variable := "RPC_DRAIN_TIMEOUT"
	if _, found := c.settings[p.name][variable]; !found {
		variable = "RPC_TIMEOUT"
	}
	drain, err := time.ParseDuration(c.environment(p)[variable])
	if err != nil {
		c.addf("%s: %s: %v", p.name, variable, err)
	}
	container := c.service(p)
	if hook := container.Lifecycle; hook != nil && hook.PreStop != nil {
		if hook.PreStop.Sleep == nil {
			c.addf("%s: the image has no program for a preStop hook", p.name)
		} else {
			drain += time.Duration(hook.PreStop.Sleep.Seconds) * time.Second
		}
	}
	grace := time.Duration(0)
	if seconds := p.template.Spec.TerminationGracePeriodSeconds; seconds != nil {
		grace = time.Duration(*seconds) * time.Second
	}
	if grace < drain+margin {
		c.addf("%s: terminationGracePeriodSeconds is %v, the pod needs %v", p.name, grace, drain+margin)
	}
}

// checkSecurity applies the profile restricted of Pod Security Admission.
func (c *checker) checkSecurity(p pod) {
	evaluator, err := podsecurity.NewEvaluator(podsecurity.DefaultChecks(), nil)
	if err != nil {
		c.addf("%v", err)
		return
	}
	level := api.LevelVersion{Level: api.LevelRestricted, Version: api.LatestVersion()}
	for _, result := range evaluator.EvaluatePod(level, &p.template.ObjectMeta, &p.template.Spec) {
		if !result.Allowed {
			c.addf("%s: not in the profile restricted: %s (%s)", p.name, result.ForbiddenReason, result.ForbiddenDetail)
		}
	}
	for _, namespace := range c.namespaces {
		if namespace.Labels["pod-security.kubernetes.io/enforce"] != "restricted" {
			c.addf("the namespace %s does not enforce the profile restricted", namespace.Name)
		}
	}
}

// checkFiles: every variable with a file names a key of a mounted Secret or ConfigMap, and no mount
// hides a rotation.
func (c *checker) checkFiles(p pod) {
	files := make(map[string]bool)
	for _, mount := range p.template.Spec.Containers[0].VolumeMounts {
		if mount.SubPath != "" {
			c.addf("%s: Kubernetes never replaces the files of the mount %s with subPath", p.name, mount.Name)
		}
		at := slices.IndexFunc(p.template.Spec.Volumes, func(v core.Volume) bool { return v.Name == mount.Name })
		if at < 0 {
			c.addf("%s: there is no volume %s", p.name, mount.Name)
			continue
		}
		if volume := p.template.Spec.Volumes[at].ConfigMap; volume != nil && c.configMaps[volume.Name] != nil {
			for key := range c.configMaps[volume.Name].Data {
				files[path.Join(mount.MountPath, key)] = true
			}
		}
		secret := p.template.Spec.Volumes[at].Secret
		if secret == nil {
			continue
		}
		keys := c.keys(secret.SecretName)
		if keys == nil {
			c.addf("%s: no overlay and no document makes the Secret %s", p.name, secret.SecretName)
		}
		for _, item := range secret.Items {
			if !slices.Contains(keys, item.Key) {
				c.addf("%s: the Secret %s has no key %s", p.name, secret.SecretName, item.Key)
			}
			files[path.Join(mount.MountPath, item.Path)] = true
		}
		for _, key := range keys {
			if len(secret.Items) == 0 {
				files[path.Join(mount.MountPath, key)] = true
			}
		}
	}
	if c.service(p) == nil {
		return
	}
	for name, value := range c.given(p) {
		if strings.HasSuffix(name, "_FILE") && !files[value] {
			c.addf("%s: %s names %s, which is no key of a mounted Secret or ConfigMap", p.name, name, value)
		}
	}
}

// keys returns the keys of a Secret of the overlay or of the document.
func (c *checker) keys(name string) []string {
	if s := c.overlay.secrets[name]; s != nil {
		return slices.Sorted(maps.Keys(s.Data))
	}
	return c.project.secrets[name]
}

// checkMemory: every container has a limit, and the services have room for what they hold. Without
// GOMEMLIMIT a service gives Go 80 % of the limit.
func (c *checker) checkMemory(p pod) {
	for _, container := range p.template.Spec.Containers {
		limit, request := container.Resources.Limits.Memory(), container.Resources.Requests.Memory()
		if limit.IsZero() || request.IsZero() || request.Cmp(*limit) > 0 {
			c.addf("%s: memory %s requested, the limit is %s", p.name, request, limit)
		}
		if container.Resources.Requests.Cpu().IsZero() {
			c.addf("%s: no CPU is requested", p.name)
		}
		if c.service(p) == nil {
			continue
		}
		const share, mostShare = 80, 90
		variables := c.environment(p)
		ofGo := limit.Value() * share / 100
		if given := variables["GOMEMLIMIT"]; given != "" {
			quantity, err := resource.ParseQuantity(strings.TrimSuffix(given, "B"))
			if ofGo = quantity.Value(); err != nil || ofGo > limit.Value()*mostShare/100 {
				c.addf("%s: GOMEMLIMIT %s, the limit of the container is %s", p.name, given, limit)
			}
		}
		var held int64
		for _, name := range []string{"RPC_MAX_BYTES_IN_HAND", "RPC_REPLAY_BYTES"} {
			bytes, err := strconv.ParseInt(variables[name], 10, 64)
			if _, found := c.settings[p.name][name]; found && err != nil {
				c.addf("%s: %s: %v", p.name, name, err)
			}
			held += bytes
		}
		if 2*held > ofGo {
			c.addf("%s: requests and responses may hold %d bytes, and Go's memory limit is only %d", p.name, held, ofGo)
		}
	}
}

// checkBroker compares the cluster and its users with the services and the manual.
func (c *checker) checkBroker() {
	for name, p := range c.overlay.permissions {
		got := [3]string{p.Spec.Permissions.Configure, p.Spec.Permissions.Write, p.Spec.Permissions.Read}
		if want := c.project.permissions[name]; got != want {
			c.addf("the permissions of %s are %q, those of docs/operations.md %q", name, got, want)
		}
		u := c.users[p.Spec.UserReference.Name]
		if u == nil || c.clusters[u.Spec.RabbitmqClusterReference.Name] == nil || c.clusters[p.Spec.RabbitmqClusterReference.Name] == nil {
			c.addf("the Permission %s names a user or a cluster that is not there", name)
			continue
		}
		for _, key := range []string{"username", "password"} {
			if secret := u.Spec.ImportCredentialsSecret.Name; !slices.Contains(c.keys(secret), key) {
				c.addf("the Secret %s of a user has no key %s", secret, key)
			}
		}
	}
	for name, cluster := range c.clusters {
		for _, secret := range []string{cluster.Spec.TLS.SecretName, cluster.Spec.TLS.CaSecretName} {
			if c.keys(secret) == nil {
				c.addf("no document makes the Secret %q of the cluster %s", secret, name)
			}
		}
		for _, term := range cluster.Spec.Affinity.PodAntiAffinity.RequiredDuringSchedulingIgnoredDuringExecution {
			if !c.matches(term.LabelSelector.MatchLabels) {
				c.addf("the affinity of the cluster %s selects no pod", name)
			}
		}
		for _, p := range c.pods() {
			if c.settings[p.name] != nil {
				c.checkCluster(cluster, p)
			}
		}
	}
	if len(c.clusters)+len(c.statefulSets) != 1 {
		c.addf("there are %d brokers", len(c.clusters)+len(c.statefulSets))
	}
}

// checkCluster compares the cluster with a service.
func (c *checker) checkCluster(cluster *rabbitmqCluster, p pod) {
	variables := c.environment(p)
	most := regexp.MustCompile(`(?m)^max_message_size = (\d+)$`).FindStringSubmatch(cluster.Spec.Rabbitmq.AdditionalConfig)
	if most == nil || most[1] != variables["RPC_MAX_MESSAGE_BYTES"] {
		c.addf("%s: RPC_MAX_MESSAGE_BYTES is %s, the broker has %q", p.name, variables["RPC_MAX_MESSAGE_BYTES"], most)
	}
	for _, fault := range membershipFaults(cluster.Spec.Rabbitmq.AdditionalConfig, cluster.Spec.Replicas) {
		c.addf("%s", fault)
	}
	const quorum = 3
	if cluster.Spec.Replicas < quorum || cluster.Spec.Replicas%2 == 0 || variables["RPC_QUEUE_TYPE"] != "quorum" {
		c.addf("%s: %d nodes and RPC_QUEUE_TYPE=%s", p.name, cluster.Spec.Replicas, variables["RPC_QUEUE_TYPE"])
	}
	for _, name := range []string{"AMQP_TLS_CA_FILE", "AMQP_TLS_CERT_FILE", "AMQP_TLS_KEY_FILE"} {
		if cluster.Spec.TLS.DisableNonTLSListeners && variables[name] == "" {
			c.addf("%s: the broker accepts only TLS with certificates, and %s is not set", p.name, name)
		}
	}
}

// membershipFaults checks the settings with which quorum queues get members on nodes that join after the
// declaration (https://www.rabbitmq.com/docs/quorum-queues#replica-reconciliation).
func membershipFaults(conf string, nodes int32) (faults []string) {
	const prefix = "quorum_queue.continuous_membership_reconciliation."
	documented := map[string]*regexp.Regexp{
		"enabled": regexp.MustCompile(`^true$`), "auto_remove": regexp.MustCompile(`^(true|false)$`),
		"target_group_size": regexp.MustCompile(`^` + strconv.Itoa(int(nodes)) + `$`),
		"interval":          regexp.MustCompile(`^[1-9]\d*$`), "trigger_interval": regexp.MustCompile(`^[1-9]\d*$`),
	}
	set := map[string]string{}
	for line := range strings.Lines(conf) {
		key, value, ok := strings.Cut(strings.TrimSpace(line), " = ")
		if !ok || strings.HasPrefix(key, "#") {
			continue
		}
		if _, twice := set[key]; twice {
			faults = append(faults, key+" is set twice")
		}
		set[key] = value
		name, ok := strings.CutPrefix(key, prefix)
		if pattern := documented[name]; ok && (pattern == nil || !pattern.MatchString(value)) {
			faults = append(faults, key+" = "+value)
		}
	}
	for _, name := range []string{"enabled", "target_group_size"} {
		if set[prefix+name] == "" {
			faults = append(faults, prefix+name+" is not set: a quorum queue that is declared before all nodes have joined keeps fewer members")
		}
	}
	return faults
}

// checkAutoscaling compares the autoscaler with the servers.
func (c *checker) checkAutoscaling() {
	for name, s := range c.scaled {
		target := c.deployments[s.Spec.ScaleTargetRef.Name]
		if target == nil || target.Spec.Replicas != nil {
			c.addf("the ScaledObject %s has no Deployment without replicas", name)
			continue
		}
		at := slices.IndexFunc(c.pods(), func(p pod) bool { return p.name == target.Name })
		queue := c.environment(c.pods()[at])["RPC_QUEUE"]
		for _, trigger := range s.Spec.Triggers {
			if got := trigger.Metadata["queueName"]; got != queue && got != queue+".batch" {
				c.addf("the ScaledObject %s looks at the queue %s, not at %s", name, got, queue)
			}
			authentication := c.triggers[trigger.AuthenticationRef.Name]
			if authentication == nil {
				c.addf("there is no TriggerAuthentication %s", trigger.AuthenticationRef.Name)
				continue
			}
			for _, ref := range authentication.Spec.SecretTargetRef {
				if !slices.Contains(c.keys(ref.Name), ref.Key) {
					c.addf("the TriggerAuthentication %s: the Secret %s has no key %s", authentication.Metadata.Name, ref.Name, ref.Key)
				}
			}
		}
	}
}

// checkCallers: where each role has a user, the servers limit what one caller may use, and their
// rules name exactly the users who may call.
func (c *checker) checkCallers() {
	if len(c.users) == 0 {
		return
	}
	at := slices.IndexFunc(c.pods(), func(p pod) bool { return p.name == "rpc-server" })
	server := c.environment(c.pods()[at])
	numbers := make(map[string]int)
	for _, name := range []string{"RPC_CALLER_MAX_CALLS", "RPC_CALLER_MAX_BYTES", "RPC_CALLER_MAX_RUNNING", "RPC_WORKERS", "RPC_PREFETCH"} {
		number, err := strconv.Atoi(server[name])
		if err != nil || number == 0 && name != "RPC_PREFETCH" {
			c.addf("rpc-server: %s=%s does not limit a caller", name, server[name])
		}
		numbers[name] = number
	}
	if numbers["RPC_PREFETCH"] == 0 {
		numbers["RPC_PREFETCH"] = 2 * numbers["RPC_WORKERS"]
	}
	if calls, prefetch := numbers["RPC_CALLER_MAX_CALLS"], numbers["RPC_PREFETCH"]; calls >= prefetch {
		c.addf("rpc-server: RPC_CALLER_MAX_CALLS=%d, one caller fills the prefetch of %d", calls, prefetch)
	}
	if running, workers := numbers["RPC_CALLER_MAX_RUNNING"], numbers["RPC_WORKERS"]; running >= workers {
		c.addf("rpc-server: RPC_CALLER_MAX_RUNNING=%d, one caller has all %d workers", running, workers)
	}
	var callers, allowed []string
	for name, p := range c.overlay.permissions {
		if strings.Contains(p.Spec.Permissions.Write, "rpc|control") {
			callers = append(callers, name)
		}
	}
	var rules struct{ Methods map[string][]string }
	if err := yaml.UnmarshalStrict([]byte(c.rulesOfMethods(server["RPC_AUTHORIZATION_FILE"])), &rules); err != nil {
		c.addf("rpc-server: the authorization rules: %v", err)
	}
	for _, users := range rules.Methods {
		allowed = append(allowed, users...)
	}
	slices.Sort(callers)
	slices.Sort(allowed)
	if allowed = slices.Compact(allowed); !slices.Equal(allowed, callers) {
		c.addf("rpc-server: the authorization rules name %q, the users who may call are %q", allowed, callers)
	}
}

// rulesOfMethods returns the content of the file with the authorization rules.
func (c *checker) rulesOfMethods(file string) string {
	for _, m := range c.configMaps {
		if rules, found := m.Data[path.Base(file)]; found {
			return rules
		}
	}
	return ""
}
