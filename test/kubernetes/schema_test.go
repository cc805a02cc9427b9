package kubernetes

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"

	"k8s.io/kube-openapi/pkg/validation/spec"
	"k8s.io/kube-openapi/pkg/validation/strfmt"
	"k8s.io/kube-openapi/pkg/validation/validate"
	"sigs.k8s.io/kustomize/api/resource"
	"sigs.k8s.io/yaml"
)

// The checked parts of resources whose Go types cannot be had (rabbitmq.com), or are too many
// packages (keda.sh). The API server validates these resources by the same schemas.
type (
	metadata struct {
		Name, Namespace string
	}
	reference struct{ Name string }

	rabbitmqCluster struct {
		Metadata metadata
		Spec     struct {
			Replicas int32
			TLS      struct {
				SecretName, CaSecretName string
				DisableNonTLSListeners   bool
			}
			Rabbitmq struct{ AdditionalConfig string }
			Affinity struct {
				PodAntiAffinity struct {
					RequiredDuringSchedulingIgnoredDuringExecution []struct {
						TopologyKey   string
						LabelSelector struct{ MatchLabels map[string]string }
					}
				}
			}
		}
	}
	user struct {
		Metadata metadata
		Spec     struct{ RabbitmqClusterReference, ImportCredentialsSecret reference }
	}
	permission struct {
		Metadata metadata
		Spec     struct {
			RabbitmqClusterReference, UserReference reference
			Vhost                                   string
			Permissions                             struct{ Configure, Write, Read string }
		}
	}
	scaledObject struct {
		Metadata metadata
		Spec     struct {
			ScaleTargetRef                   reference
			MinReplicaCount, MaxReplicaCount int32
			Triggers                         []struct {
				Type              string
				Metadata          map[string]string
				AuthenticationRef reference
			}
		}
	}
	triggerAuthentication struct {
		Metadata metadata
		Spec     struct {
			SecretTargetRef []struct{ Parameter, Name, Key string }
		}
	}
)

// labels returns the labels that the cluster operator gives to pods and Services.
func (c *rabbitmqCluster) labels() map[string]string {
	return map[string]string{
		"app.kubernetes.io/name":      c.Metadata.Name,
		"app.kubernetes.io/component": "rabbitmq",
		"app.kubernetes.io/part-of":   "rabbitmq",
	}
}

// ports returns the ports of the cluster operator's pods. Those of rabbitmq.conf have a TLS port
// beside the other one, which ends with disableNonTLSListeners.
func (c *rabbitmqCluster) ports() map[string]int32 {
	ports := map[string]int32{"epmd": 4369, "clustering": 25672, "tools": 35672}
	if c.Spec.TLS.SecretName != "" {
		ports["amqps"], ports["management-tls"], ports["prometheus-tls"] = 5671, 15671, 15691
	}
	if !c.Spec.TLS.DisableNonTLSListeners {
		ports["amqp"], ports["management"], ports["prometheus"] = 5672, 15672, 15692
	}
	return ports
}

// decodeBySchema is decode by the schema in testdata.
func decodeBySchema[T any](r *resource.Resource, into *map[string]*T) error {
	content, err := r.MarshalJSON()
	if err != nil {
		return err
	}
	one := new(T)
	if err := json.Unmarshal(content, one); err != nil {
		return err
	}
	keep(r, one, into)
	schema, err := schemaOf(r)
	if err != nil {
		return err
	}
	var value any
	if err := json.Unmarshal(content, &value); err != nil {
		return err
	}
	return validate.NewSchemaValidator(schema, nil, "", strfmt.Default).Validate(value).AsError()
}

// schemaOf reads the schema of a resource, and makes it refuse unknown fields.
func schemaOf(r *resource.Resource) (*spec.Schema, error) {
	content, err := os.ReadFile(filepath.Join("testdata", "schemas", r.GetKind()+".yaml"))
	if err != nil {
		return nil, err
	}
	var file struct {
		Group, Version string
		Schema         map[string]any
	}
	if err := yaml.Unmarshal(content, &file); err != nil {
		return nil, err
	}
	if r.GetApiVersion() != file.Group+"/"+file.Version {
		return nil, fmt.Errorf("the schema is of %s/%s", file.Group, file.Version)
	}
	closeObjects(file.Schema)
	if content, err = json.Marshal(file.Schema); err != nil {
		return nil, err
	}
	schema := new(spec.Schema)
	return schema, json.Unmarshal(content, schema)
}

// closeObjects refuses all fields of objects that have no schema.
func closeObjects(schema map[string]any) {
	if fields, found := schema["properties"].(map[string]any); found {
		if schema["x-kubernetes-preserve-unknown-fields"] != true {
			schema["additionalProperties"] = false
		}
		for _, field := range fields {
			if field, found := field.(map[string]any); found {
				closeObjects(field)
			}
		}
	}
	for _, inner := range []string{"items", "additionalProperties"} {
		if inner, found := schema[inner].(map[string]any); found {
			closeObjects(inner)
		}
	}
}
