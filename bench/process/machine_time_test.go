package process

import (
	"testing"
	"time"
)

func TestParseMachineTime(t *testing.T) {
	t.Parallel()
	got, err := parseMachineTime("cpu  10 20 30 400 50 6 7 8 0 0")
	if want := (MachineTime{Busy: 810 * time.Millisecond, Idle: 4500 * time.Millisecond}); err != nil || got != want {
		t.Errorf("%+v, %v, want %+v", got, err, want)
	}
	for _, line := range []string{"", "cpu0 1 2 3 4 5 6 7 8", "cpu 1 2 3", "cpu 1 2 3 4 5 6 7 x"} {
		if _, err := parseMachineTime(line); err == nil {
			t.Errorf("%q: no error", line)
		}
	}
}

func TestMachineTime(t *testing.T) {
	t.Parallel()
	if got, err := machineTime(); err != nil || got.Busy == 0 {
		t.Errorf("%+v, %v", got, err)
	}
}
