// Package kubernetes has no code: its tests build the overlays of deploy/kubernetes, decode every
// resource strictly into the types, or by the schemas, of its API, and compare the resources with
// the services, the images and the documents. It is a module of its own, because the types of
// Kubernetes are many packages that no other test needs.
package kubernetes
