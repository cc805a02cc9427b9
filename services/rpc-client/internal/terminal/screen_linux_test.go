package terminal

import (
	"testing"

	"rabbitmq-rpc/services/rpc-client/internal/terminal/terminaltest"
)

func TestScreenFollowsItsTerminal(t *testing.T) {
	t.Setenv("TERM", "xterm")
	master, slave, err := terminaltest.Open(100)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _, _ = master.Close(), slave.Close() }()
	s := OpenScreen(slave)
	for _, columns := range []uint16{100, 20, 5, 80} {
		if err := terminaltest.Resize(master, columns); err != nil {
			t.Fatal(err)
		}
		want := int(columns)
		if columns < fewest {
			want = 0
		}
		if got := s.Columns(); got != want {
			t.Errorf("%d columns are taken for %d", columns, got)
		}
	}
	t.Setenv("TERM", "dumb")
	if OpenScreen(slave).Columns() != 0 {
		t.Error("a bar on a terminal that cannot go back")
	}
}
