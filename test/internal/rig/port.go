package rig

import (
	"cmp"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"testing"
)

// FreeAddress returns a free address of the host, for a program that listens later. The port is
// below the ports that the system assigns to connections, and is reserved against other tests and
// brokers until the end of the test (deploy/lib.sh: reserve_port).
func FreeAddress(t testing.TB, host string) string {
	t.Helper()
	const lowest, ports, tries = 20_000, 12_000, 100 // as in deploy/lib.sh
	folder := reservations(t)
	for range tries {
		port := strconv.Itoa(lowest + rand.IntN(ports))
		reservation := filepath.Join(folder, port)
		if err := os.Mkdir(reservation, 0o755); err != nil {
			continue
		}
		t.Cleanup(func() { _ = os.Remove(reservation) })
		address := net.JoinHostPort(host, port)
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

// reservations returns the folder with an entry for each reserved port.
func reservations(t testing.TB) string {
	t.Helper()
	folder := filepath.Join(cmp.Or(os.Getenv("XDG_CACHE_HOME"), filepath.Join(os.Getenv("HOME"), ".cache")), "rabbitmq-rpc", "ports")
	if err := os.MkdirAll(folder, 0o755); err != nil {
		t.Fatal(err)
	}
	return folder
}
