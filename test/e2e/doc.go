// Package e2e tests a user's steps: make up, some inspection, make down. With a Docker engine
// the pair runs in containers, otherwise as plain processes. In both cases it uses separate
// ports and a separate name, beside other running instances.
//
//	go test -v -tags e2e ./e2e/...
package e2e
