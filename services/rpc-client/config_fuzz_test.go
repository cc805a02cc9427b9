package main

import (
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"

	"go.uber.org/zap"

	"rabbitmq-rpc/internal/config"
	"rabbitmq-rpc/pkg/amqpx"
)

// FuzzEnvironment gives two variables any values: they are taken, and then the library
// takes them too, or each fault is told in one line.
func FuzzEnvironment(f *testing.F) {
	described := config.Describe(&Config{})
	delete(described, "RPC_REPORT_DIR") // a folder that is taken is made
	names := slices.Sorted(maps.Keys(described))
	for i, name := range names {
		f.Add(byte(i), badValues[name].value, byte(i+1), "1")
	}
	f.Fuzz(func(t *testing.T, which byte, value string, other byte, second string) {
		if strings.ContainsRune(value+second, 0) {
			return // no environment can hold it
		}
		isolate(t)
		t.Setenv(names[int(which)%len(names)], value)
		t.Setenv(names[int(other)%len(names)], second)
		var c Config
		err := config.Load(&c)
		if bad, ok := errors.AsType[*config.Error](err); ok {
			for _, line := range bad.Lines {
				if line == "" || strings.ContainsAny(line, "\n\r") {
					t.Errorf("fault %q", line)
				}
			}
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		made, err := amqpx.NewClient(c.AMQP.URL.Reveal(), c.options(zap.NewNop())...)
		if err != nil {
			t.Errorf("%q and %q are taken, but not by the library: %v", value, second, err)
			return
		}
		_ = made.Close(t.Context())
	})
}
