package terminaltest

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Open opens a pseudo-terminal with the given number of columns. It returns the side of the
// screen and the side of the program.
func Open(columns uint16) (screen, program *os.File, err error) {
	screen, err = os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		return nil, nil, err
	}
	if program, err = openProgram(screen); err != nil {
		return nil, nil, errors.Join(err, screen.Close())
	}
	if err = Resize(screen, columns); err != nil {
		return nil, nil, errors.Join(err, screen.Close(), program.Close())
	}
	return screen, program, nil
}

// openProgram unlocks and opens the other side of a pseudo-terminal.
func openProgram(screen *os.File) (*os.File, error) {
	fd := int(screen.Fd())
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		return nil, err
	}
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		return nil, err
	}
	return os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
}

// Resize changes the number of columns.
func Resize(screen *os.File, columns uint16) error {
	return unix.IoctlSetWinsize(int(screen.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 24, Col: columns})
}
