package config

import (
	"fmt"
	"iter"
	"slices"
	"strconv"
	"strings"
	"unicode"
)

// Faults collects all faults of the environment. Its zero value is ready to use.
type Faults struct {
	list []fault
}

type fault struct{ name, text string }

// Addf adds a fault of the variable name. The text must not contain a secret. Only the first
// fault of a variable is kept, because faults that follow from an unreadable value are noise.
func (f *Faults) Addf(name, format string, args ...any) {
	if !f.Has(name) {
		f.list = append(f.list, fault{name, oneLine(fmt.Sprintf(format, args...))})
	}
}

// oneLine escapes control characters, such as a newline in a file's name, so that a value
// cannot add lines to the output.
func oneLine(text string) string {
	if !strings.ContainsFunc(text, unicode.IsControl) {
		return text
	}
	quoted := strconv.Quote(text)
	return strings.ReplaceAll(quoted[1:len(quoted)-1], `\"`, `"`)
}

// Add adds the faults of another collection.
func (f *Faults) Add(others *Faults) {
	for _, x := range others.list {
		f.Addf(x.name, "%s", x.text)
	}
}

// All yields the names of variables and their faults.
func (f *Faults) All() iter.Seq2[string, string] {
	return func(yield func(name, text string) bool) {
		for _, x := range f.list {
			if !yield(x.name, x.text) {
				return
			}
		}
	}
}

// Has reports whether the variable name has a fault.
func (f *Faults) Has(name string) bool {
	return slices.ContainsFunc(f.list, func(x fault) bool { return x.name == name })
}

// Err returns the faults as an [*Error], or nil if there are none.
func (f *Faults) Err() error {
	if len(f.list) == 0 {
		return nil
	}
	lines := make([]string, len(f.list))
	for i, x := range f.list {
		lines[i] = x.name + ": " + x.text
	}
	return &Error{Lines: lines}
}

// Error is the error of an invalid configuration.
type Error struct {
	// Lines holds one text per fault, in the order of detection; each text begins with the
	// variable's name.
	Lines []string
}

// Error lists every fault on a separate line.
func (e *Error) Error() string {
	return "bad configuration:\n  " + strings.Join(e.Lines, "\n  ")
}

// ExitCode returns the process's exit code for an invalid configuration.
func (e *Error) ExitCode() int { return 2 }
