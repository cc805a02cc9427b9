package process

import (
	"net"
	"os"
	"slices"
	"testing"
)

func TestStatusBytes(t *testing.T) {
	t.Parallel()
	const status = "Name:\tbench\nVmHWM:\t    2048 kB\nVmRSS:\t    1024 kB\nThreads:\t7\n"
	for name, want := range map[string]uint64{"VmRSS": 1 << 20, "VmHWM": 2 << 20, "VmSwap": 0, "Threads": 0} {
		if got := statusBytes(status, name); got != want {
			t.Errorf("%s: %d, want %d", name, got, want)
		}
	}
}

func TestResident(t *testing.T) {
	t.Parallel()
	if got, err := Resident(os.Getpid()); err != nil || got == 0 {
		t.Errorf("this process: %d bytes, %v", got, err)
	}
	if got, err := Resident(0); err != nil || got != 0 {
		t.Errorf("no process: %d bytes, %v", got, err)
	}
}

func TestListeners(t *testing.T) {
	t.Parallel()
	const table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n" +
		"   0: 00000000:1628 00000000:0000 0A 00000000:00000000 00:00000000 00000000   100        0 4711 1 0\n" +
		"   1: 0100007F:1628 0100007F:9999 01 00000000:00000000 00:00000000 00000000   100        0 4712 1 0\n" +
		"   2: 00000000:1629 00000000:0000 0A 00000000:00000000 00:00000000 00000000   100        0 4713 1 0\n"
	if got := listeners(table, 5672); !slices.Equal(got, []string{"4711"}) {
		t.Errorf("listeners %v, want 4711", got)
	}
}

func TestFindBroker(t *testing.T) {
	t.Parallel()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	url := "amqp://" + l.Addr().String() + "/"
	if got := FindBroker(url); got != os.Getpid() {
		t.Errorf("process %d, want %d", got, os.Getpid())
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if got := FindBroker("amqp://127.0.0.1/"); got == os.Getpid() {
		t.Error("found by no port")
	}
}
