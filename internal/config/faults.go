package config

import (
	"fmt"
	"iter"
	"slices"
	"strconv"
	"strings"
	"unicode"
)

// Faults collects everything that is wrong with the environment. Its zero value
// is ready to use.
type Faults struct {
	list []fault
}

type fault struct{ name, text string }

// Addf adds a fault of the variable name. The text must not hold a secret. A
// variable that has a fault already keeps only its first: what follows from an
// unreadable value is noise.
func (f *Faults) Addf(name, format string, args ...any) {
	if !f.Has(name) {
		f.list = append(f.list, fault{name, oneLine(fmt.Sprintf(format, args...))})
	}
}

// oneLine shows control characters, such as a line's end in a file's name, as escapes:
// a value must not write lines of its own.
func oneLine(text string) string {
	if !strings.ContainsFunc(text, unicode.IsControl) {
		return text
	}
	quoted := strconv.Quote(text)
	return strings.ReplaceAll(quoted[1:len(quoted)-1], `\"`, `"`)
}

// Add adds the faults of others.
func (f *Faults) Add(others *Faults) {
	for _, x := range others.list {
		f.Addf(x.name, "%s", x.text)
	}
}

// All yields the names of variables and what is wrong with them.
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

// Err returns the faults as an [*Error], or nil when there is none.
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

// Error is a bad configuration.
type Error struct {
	// Lines holds one text for each fault, in the order they were found; each
	// begins with the variable's name.
	Lines []string
}

// Error lists every fault on a line of its own.
func (e *Error) Error() string {
	return "bad configuration:\n  " + strings.Join(e.Lines, "\n  ")
}

// ExitCode is the process's exit code for bad configuration.
func (e *Error) ExitCode() int { return 2 }
