package process

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

// MachineTime is how long the machine's processors did something, and how long they did nothing,
// since its start; processors are added up. Zero if the system does not tell.
type MachineTime struct{ Busy, Idle time.Duration }

// machineTime reads the machine's times.
func machineTime() (MachineTime, error) {
	text, err := os.ReadFile("/proc/stat")
	if os.IsNotExist(err) {
		return MachineTime{}, nil
	}
	if err != nil {
		return MachineTime{}, err
	}
	first, _, _ := strings.Cut(string(text), "\n")
	return parseMachineTime(first)
}

// parseMachineTime reads a line such as "cpu  11 22 33 44 55 66 77 88 0 0", in hundredths of a
// second: user, nice, system, idle, waiting for a disk, interrupts, soft interrupts, stolen by
// other machines, and times that the first two contain.
func parseMachineTime(line string) (t MachineTime, err error) {
	const tick = 10 * time.Millisecond
	fields := strings.Fields(line)
	if len(fields) < 9 || fields[0] != "cpu" {
		return t, fmt.Errorf("times of the machine: %q", line)
	}
	for i, field := range fields[1:9] {
		n, err := strconv.ParseInt(field, 10, 64)
		if err != nil {
			return t, err
		}
		if i == 3 || i == 4 {
			t.Idle += time.Duration(n) * tick
		} else {
			t.Busy += time.Duration(n) * tick
		}
	}
	return t, nil
}
