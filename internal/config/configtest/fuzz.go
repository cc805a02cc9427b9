package configtest

import (
	"maps"
	"slices"
	"strings"
	"testing"

	"rabbitmq-rpc/internal/config"
)

// Fuzz sets two variables to arbitrary values. Either the settings are valid, and then use
// must accept them, or each fault is a single line. The variables in without are not set.
func Fuzz[T any, S interface {
	*T
	config.Spec
}](f *testing.F, table map[string]Bad, use func(t *testing.T, settings S) error, without ...string) {
	f.Helper()
	names := slices.Sorted(maps.Keys(config.Describe(S(new(T)))))
	names = slices.DeleteFunc(names, func(name string) bool { return slices.Contains(without, name) })
	for i, name := range names {
		f.Add(byte(i), table[name].Value, byte(i+1), "1")
	}
	f.Fuzz(func(t *testing.T, which byte, value string, other byte, second string) {
		if strings.ContainsRune(value+second, 0) {
			return // not possible in an environment
		}
		settings := S(new(T))
		Isolate(t, settings)
		t.Setenv(names[int(which)%len(names)], value)
		t.Setenv(names[int(other)%len(names)], second)
		faults := Load(t, settings)
		for _, line := range faults {
			if line == "" || strings.ContainsAny(line, "\n\r") {
				t.Errorf("fault %q", line)
			}
		}
		if faults != nil {
			return
		}
		if err := use(t, settings); err != nil {
			t.Errorf("%q and %q are taken, and cannot be used: %v", value, second, err)
		}
	})
}
