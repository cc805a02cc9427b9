package lifecycle

import (
	"bytes"
	"errors"
	"fmt"
	"testing"
)

func TestFinish(t *testing.T) {
	t.Parallel()
	base := errors.New("no such thing")
	for _, c := range []struct {
		err  error
		code int
		text string
	}{
		{nil, ExitOK, ""},
		{base, ExitFailed, "svc: no such thing\n"},
		{ConfigError(base), ExitConfig, "svc: no such thing\n"},
		{fmt.Errorf("start: %w", ConfigError(base)), ExitConfig, "svc: start: no such thing\n"},
		{errors.Join(base, ConfigError(base)), ExitConfig, "svc: no such thing\nno such thing\n"},
		{ConfigError(nil), ExitOK, ""},
	} {
		var out bytes.Buffer
		if code := Finish(&out, "svc", c.err); code != c.code || out.String() != c.text {
			t.Errorf("%v: exit code %d and %q, want %d and %q", c.err, code, out.String(), c.code, c.text)
		}
	}
	if !errors.Is(ConfigError(base), base) {
		t.Error("ConfigError hides its cause")
	}
}

func TestParseArgs(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		args []string
		want Command
		bad  bool
	}{
		{nil, CommandServe, false},
		{[]string{"healthcheck"}, CommandHealthcheck, false},
		{[]string{"check"}, CommandCheck, false},
		{[]string{"--help"}, CommandHelp, false},
		{[]string{"-h"}, CommandHelp, false},
		{[]string{"help"}, CommandHelp, false},
		{[]string{"serve"}, "", true},
		{[]string{""}, "", true},
		{[]string{"healthcheck", "now"}, "", true},
	} {
		got, err := ParseArgs(c.args)
		if got != c.want || (err != nil) != c.bad {
			t.Errorf("%q: got %q, %v", c.args, got, err)
		}
		if err != nil && ExitCode(err) != ExitConfig {
			t.Errorf("%q: exit code %d", c.args, ExitCode(err))
		}
	}
}
