package kubernetes

import (
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"testing"

	monitoring "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	apps "k8s.io/api/apps/v1"
	batch "k8s.io/api/batch/v1"
	core "k8s.io/api/core/v1"
	networking "k8s.io/api/networking/v1"
	policy "k8s.io/api/policy/v1"
	"sigs.k8s.io/json"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/api/resource"
	"sigs.k8s.io/kustomize/kyaml/filesys"
)

// root is the root of the repository.
const root = "../.."

// overlay holds the resources of one overlay by their names.
type overlay struct {
	name   string
	faults []string // found while decoding

	deployments  map[string]*apps.Deployment
	statefulSets map[string]*apps.StatefulSet
	jobs         map[string]*batch.Job
	services     map[string]*core.Service
	secrets      map[string]*core.Secret
	configMaps   map[string]*core.ConfigMap
	namespaces   map[string]*core.Namespace
	budgets      map[string]*policy.PodDisruptionBudget
	policies     map[string]*networking.NetworkPolicy
	monitors     map[string]*monitoring.ServiceMonitor
	rules        map[string]*monitoring.PrometheusRule
	clusters     map[string]*rabbitmqCluster
	permissions  map[string]*permission
	users        map[string]*user
	scaled       map[string]*scaledObject
	triggers     map[string]*triggerAuthentication
}

// sources returns a copy of deploy/kubernetes in memory, which a test may change.
func sources(t *testing.T) filesys.FileSystem {
	t.Helper()
	files := filesys.MakeFsInMemory()
	dir := filepath.Join(root, "deploy", "kubernetes")
	err := filepath.WalkDir(dir, func(file string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		content, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		name, err := filepath.Rel(dir, file)
		if err != nil {
			return err
		}
		return files.WriteFile(path.Join("/", filepath.ToSlash(name)), content)
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// build runs Kustomize, as kubectl kustomize does, and decodes the result.
func build(files filesys.FileSystem, name string) (*overlay, error) {
	built, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(files, "/overlays/"+name)
	if err != nil {
		return nil, err
	}
	o := &overlay{name: name}
	for _, r := range built.Resources() {
		if err := o.add(r); err != nil {
			o.faults = append(o.faults, fmt.Sprintf("%s %s: %v", r.GetKind(), r.GetName(), err))
		}
	}
	return o, nil
}

// add decodes a resource into the type of its API.
func (o *overlay) add(r *resource.Resource) error {
	kind := r.GetApiVersion() + " " + r.GetKind()
	switch kind {
	case "apps/v1 Deployment":
		return decode(r, &o.deployments)
	case "apps/v1 StatefulSet":
		return decode(r, &o.statefulSets)
	case "batch/v1 Job":
		return decode(r, &o.jobs)
	case "v1 Service":
		return decode(r, &o.services)
	case "v1 Secret":
		return decode(r, &o.secrets)
	case "v1 ConfigMap":
		return decode(r, &o.configMaps)
	case "v1 Namespace":
		return decode(r, &o.namespaces)
	case "policy/v1 PodDisruptionBudget":
		return decode(r, &o.budgets)
	case "networking.k8s.io/v1 NetworkPolicy":
		return decode(r, &o.policies)
	case "monitoring.coreos.com/v1 ServiceMonitor":
		return decode(r, &o.monitors)
	case "monitoring.coreos.com/v1 PrometheusRule":
		return decode(r, &o.rules)
	case "rabbitmq.com/v1beta1 RabbitmqCluster":
		return decodeBySchema(r, &o.clusters)
	case "rabbitmq.com/v1beta1 Permission":
		return decodeBySchema(r, &o.permissions)
	case "rabbitmq.com/v1beta1 User":
		return decodeBySchema(r, &o.users)
	case "keda.sh/v1alpha1 ScaledObject":
		return decodeBySchema(r, &o.scaled)
	case "keda.sh/v1alpha1 TriggerAuthentication":
		return decodeBySchema(r, &o.triggers)
	default:
		return fmt.Errorf("%s has no type and no schema in this test", kind)
	}
}

// decode stores the resource under its name. An unknown or repeated field is an error.
func decode[T any](r *resource.Resource, into *map[string]*T) error {
	content, err := r.MarshalJSON()
	if err != nil {
		return err
	}
	one := new(T)
	strict, err := json.UnmarshalStrict(content, one)
	if err != nil {
		return err
	}
	keep(r, one, into)
	if len(strict) > 0 {
		texts := make([]string, len(strict))
		for i, fault := range strict {
			texts[i] = fault.Error()
		}
		return fmt.Errorf("%s", strings.Join(texts, "; "))
	}
	return nil
}

func keep[T any](r *resource.Resource, one *T, into *map[string]*T) {
	if *into == nil {
		*into = make(map[string]*T)
	}
	(*into)[r.GetName()] = one
}

// pod is a pod template of an overlay.
type pod struct {
	name     string // of the workload
	labels   map[string]string
	template *core.PodTemplateSpec // nil for the pods of the cluster operator
	ports    map[string]int32
	replicas int32 // the least number
}

// pods lists the pods of the overlay's workloads, and the pods of the cluster operator.
func (o *overlay) pods() []pod {
	var list []pod
	add := func(name string, template *core.PodTemplateSpec, replicas int32) {
		ports := make(map[string]int32)
		for _, c := range template.Spec.Containers {
			for _, p := range c.Ports {
				ports[p.Name] = p.ContainerPort
			}
		}
		list = append(list, pod{name: name, labels: template.Labels, template: template, ports: ports, replicas: replicas})
	}
	for name, d := range o.deployments {
		least := int32(1)
		if d.Spec.Replicas != nil {
			least = *d.Spec.Replicas
		}
		for _, s := range o.scaled {
			if s.Spec.ScaleTargetRef.Name == name {
				least = s.Spec.MinReplicaCount
			}
		}
		add(name, &d.Spec.Template, least)
	}
	for name, s := range o.statefulSets {
		add(name, &s.Spec.Template, *s.Spec.Replicas)
	}
	for name, j := range o.jobs {
		add(name, &j.Spec.Template, 1)
	}
	for name, c := range o.clusters {
		list = append(list, pod{name: name, labels: c.labels(), ports: c.ports(), replicas: c.Spec.Replicas})
	}
	return list
}
