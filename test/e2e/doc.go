// Package e2e tests what a user does: make up, a look around, make down. Where a
// Docker engine answers the pair runs in containers, otherwise as plain processes;
// either way on ports, and with a name, of its own, beside whatever runs already.
//
//	go test -v -tags e2e ./e2e/...
package e2e
