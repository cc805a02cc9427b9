package rig

import (
	"math/rand/v2"
	"net"
	"strconv"
	"testing"
)

// FreeAddress returns an address of the host without a listener, for a program that listens there
// later. Its port is below those that the system assigns to connections, so no connection takes it
// meanwhile.
func FreeAddress(t testing.TB, host string) string {
	t.Helper()
	const lowest, ports, tries = 20_000, 12_000, 100 // as in deploy/lib.sh
	for range tries {
		address := net.JoinHostPort(host, strconv.Itoa(lowest+rand.IntN(ports)))
		l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", address)
		if err != nil {
			continue
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		return address
	}
	t.Fatalf("no free port of %s in %d tries", host, tries)
	return ""
}
