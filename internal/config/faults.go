package config

import (
	"fmt"
	"slices"
	"strings"
)

// Faults is everything that is wrong with the environment. It is the error that
// [Load] returns; its zero value holds no fault and is ready to use.
type Faults struct {
	list []fault
}

type fault struct{ name, text string }

// Addf adds a fault of the variable name. The text must not hold a secret. A
// variable that has a fault already keeps only its first: what follows from an
// unreadable value is noise.
func (f *Faults) Addf(name, format string, args ...any) {
	if !f.Has(name) {
		f.list = append(f.list, fault{name, fmt.Sprintf(format, args...)})
	}
}

// Has reports whether the variable name has a fault.
func (f *Faults) Has(name string) bool {
	return slices.ContainsFunc(f.list, func(x fault) bool { return x.name == name })
}

// Lines returns the faults, one text for each, in the order they were found.
func (f *Faults) Lines() []string {
	lines := make([]string, len(f.list))
	for i, x := range f.list {
		lines[i] = x.name + ": " + x.text
	}
	return lines
}

// Error lists every fault on a line of its own.
func (f *Faults) Error() string {
	return "bad configuration:\n  " + strings.Join(f.Lines(), "\n  ")
}

// ExitCode is the process's exit code for bad configuration.
func (f *Faults) ExitCode() int { return 2 }

// Err returns f as an error, or nil when there is no fault.
func (f *Faults) Err() error {
	if len(f.list) == 0 {
		return nil
	}
	return f
}
