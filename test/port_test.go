package test

import (
	"net"
	"path/filepath"
	"testing"

	"rabbitmq-rpc/test/internal/rig"
)

// TestFreeAddressIsReserved: the port of a test is reserved in the folder of deploy/lib.sh until the end
// of the test, so that no broker of another suite takes the port before the test's program listens.
func TestFreeAddressIsReserved(t *testing.T) {
	cache := t.TempDir()
	t.Setenv("XDG_CACHE_HOME", cache)
	reserved := func() []string {
		t.Helper()
		ports, err := filepath.Glob(filepath.Join(cache, "rabbitmq-rpc", "ports", "*"))
		if err != nil {
			t.Fatal(err)
		}
		return ports
	}
	t.Run("test", func(t *testing.T) {
		_, port, err := net.SplitHostPort(rig.FreeAddress(t, "127.0.0.1"))
		if err != nil {
			t.Fatal(err)
		}
		if ports := reserved(); len(ports) != 1 || filepath.Base(ports[0]) != port {
			t.Errorf("reserved %q, want %s", ports, port)
		}
	})
	if ports := reserved(); len(ports) != 0 {
		t.Errorf("reserved after the test: %q", ports)
	}
}
