package config

import (
	"errors"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

type inner struct {
	Text string `envconfig:"TEST_TEXT" default:"hello" maxlen:"8"`
	Word string `envconfig:"TEST_WORD" default:"one" oneof:"one two"`
}

type spec struct {
	Inner  inner
	Count  int           `envconfig:"TEST_COUNT" default:"7" min:"1" max:"1000"`
	Wait   time.Duration `envconfig:"TEST_WAIT" default:"5s" min:"1s" max:"1m"`
	On     bool          `envconfig:"TEST_ON" default:"true"`
	Free   string        `envconfig:"TEST_FREE" default:"x" empty:"ok"`
	Hidden Secret        `envconfig:"TEST_SECRET" default:"amqp://u:pass@h/" url:"ok"`
	Other  string

	validated bool
}

func (s *spec) Validate(faults *Faults) {
	s.validated = true
	if s.Inner.Text == "bad" {
		faults.Addf("TEST_TEXT", "is bad")
	}
}

// isolate unsets every variable of s for the duration of the test.
func isolate(t *testing.T, s any) {
	t.Helper()
	for name := range Describe(s) {
		t.Setenv(name, "")
		if err := os.Unsetenv(name); err != nil {
			t.Fatal(err)
		}
	}
}

// load returns the faults of s in the test's environment.
func load(t *testing.T, s Spec) []string {
	t.Helper()
	err := Load(s)
	var bad *Error
	if err != nil && !errors.As(err, &bad) {
		t.Fatalf("Load returned a %T: %v", err, err)
	}
	if bad == nil {
		return nil
	}
	return bad.Lines
}

//nolint:paralleltest // sets the environment
func TestLoadDefaults(t *testing.T) {
	var s spec
	isolate(t, &s)
	if faults := load(t, &s); faults != nil {
		t.Fatalf("faults: %q", faults)
	}
	want := spec{
		Inner: inner{"hello", "one"}, Count: 7, Wait: 5 * time.Second, On: true,
		Free: "x", Hidden: "amqp://u:pass@h/", validated: true,
	}
	if s != want {
		t.Errorf("got %+v, want %+v", s, want)
	}
}

func TestLoadValues(t *testing.T) {
	var s spec
	isolate(t, &s)
	t.Setenv("TEST_TEXT", "ho ho")
	t.Setenv("TEST_WORD", "two")
	t.Setenv("TEST_COUNT", "1000")
	t.Setenv("TEST_WAIT", "1m")
	t.Setenv("TEST_ON", "0")
	t.Setenv("TEST_FREE", "")
	if faults := load(t, &s); faults != nil {
		t.Fatalf("faults: %q", faults)
	}
	want := spec{
		Inner: inner{"ho ho", "two"}, Count: 1000, Wait: time.Minute,
		Hidden: "amqp://u:pass@h/", validated: true,
	}
	if s != want {
		t.Errorf("got %+v, want %+v", s, want)
	}
}

func TestLoadFaults(t *testing.T) {
	for _, c := range []struct{ name, value, want string }{
		{"TEST_COUNT", "many", `TEST_COUNT: the value is not a whole number`},
		{"TEST_COUNT", "1.5", `TEST_COUNT: "1.5" is not a whole number`},
		// Eight for envconfig, ten for people.
		{"TEST_COUNT", "010", `TEST_COUNT: "010" is not a whole number`},
		{"TEST_COUNT", "0x10", `TEST_COUNT: the value is not a whole number`},
		{"TEST_COUNT", "0", `TEST_COUNT: 0 is less than 1`},
		{"TEST_COUNT", "-1", `TEST_COUNT: -1 is less than 1`},
		{"TEST_COUNT", "1001", `TEST_COUNT: 1001 is more than 1000`},
		{"TEST_COUNT", "99999999999999999999", `TEST_COUNT: "99999999999999999999" is not a whole number`},
		{"TEST_WAIT", "5", `TEST_WAIT: "5" is not a duration such as 500ms, 5s or 2m`},
		{"TEST_WAIT", "1ms", `TEST_WAIT: 1ms is less than 1s`},
		{"TEST_WAIT", "2m", `TEST_WAIT: 2m0s is more than 1m0s`},
		{"TEST_ON", "yes", `TEST_ON: "yes" is not true or false`},
		{"TEST_WORD", "three", `TEST_WORD: the value is not one of: one, two`},
		{"TEST_WORD", " Twoo", `TEST_WORD: " Twoo" is not one of: one, two`},
		{"TEST_TEXT", "much too long", `TEST_TEXT: has 13 bytes, more than 8`},
		{"TEST_TEXT", "bad", `TEST_TEXT: is bad`},
		{"TEST_WORD", strings.Repeat("x", 100), `TEST_WORD: the value is not one of: one, two`},
		{"TEST_WORD", "amqp://u:pass@h/", `TEST_WORD: is a URL, which belongs into another variable`},
		{"TEST_TEXT", "a://b", `TEST_TEXT: is a URL, which belongs into another variable`},
	} {
		t.Run(c.name+"="+c.value, func(t *testing.T) {
			var s spec
			isolate(t, &s)
			t.Setenv(c.name, c.value)
			got := strings.Join(load(t, &s), "|")
			if got != c.want {
				t.Errorf("got  %q\nwant %q", got, c.want)
			}
		})
	}
}

func TestLoadEmptyValues(t *testing.T) {
	for name := range Describe(&spec{}) {
		for _, empty := range []string{"", "  "} {
			t.Run(name+"="+empty, func(t *testing.T) {
				var s spec
				isolate(t, &s)
				t.Setenv(name, empty)
				want := []string{name + ": is empty; unset it for the default or give it a value"}
				if name == "TEST_FREE" {
					want = nil
				}
				if got := load(t, &s); !slices.Equal(got, want) {
					t.Errorf("got %q, want %q", got, want)
				}
			})
		}
	}
}

//nolint:paralleltest // sets the environment
func TestLoadNamesEveryFaultAtOnce(t *testing.T) {
	var s spec
	isolate(t, &s)
	bad := map[string]string{
		"TEST_TEXT": "", "TEST_WORD": "three", "TEST_COUNT": "x", "TEST_WAIT": "x", "TEST_ON": "x", "TEST_SECRET": "",
	}
	for name, value := range bad {
		t.Setenv(name, value)
	}
	faults := load(t, &s)
	if len(faults) != len(bad) {
		t.Errorf("%d faults, want %d: %q", len(faults), len(bad), faults)
	}
	for name := range bad {
		if !slices.ContainsFunc(faults, func(f string) bool { return strings.HasPrefix(f, name+": ") }) {
			t.Errorf("%s is not named: %q", name, faults)
		}
	}
	if !s.validated {
		t.Error("Validate did not run")
	}
}

func TestFaultsKeepTheFirstOfAName(t *testing.T) {
	t.Parallel()
	var f Faults
	if f.Err() != nil {
		t.Error("no fault is an error")
	}
	f.Addf("A", "one")
	f.Addf("A", "two")
	f.Addf("B", "three")
	want := "bad configuration:\n  A: one\n  B: three"
	if got := f.Err().Error(); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}
