package test

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// loaded reads an .env file with the scripts of deploy/, and returns the value of the variable
// A and the scripts' error output.
func loaded(t *testing.T, content string) (value, complaint string) {
	t.Helper()
	file := filepath.Join(t.TempDir(), ".env")
	if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	var out, errs bytes.Buffer
	cmd := exec.CommandContext(t.Context(), "bash", "-c", `. ../deploy/lib.sh; load_env; printf %s "${A-unset}"`)
	cmd.Env = append(os.Environ(), "ENV_FILE="+file)
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil && errs.Len() == 0 {
		t.Fatal(err)
	}
	return out.String(), strings.ReplaceAll(errs.String(), file, ".env")
}

// TestEnvFileLinesThatAllReadersReadAlike: lines understood alike by all readers are accepted.
// Other lines are refused with their number and without their value, which may be a secret.
func TestEnvFileLinesThatAllReadersReadAlike(t *testing.T) {
	t.Parallel()
	for content, want := range map[string]string{
		"A=b":                            "b",
		"A=b\n":                          "b",
		"# a comment\n\nA=b\n":           "b",
		"A=":                             "unset",
		"A=a b":                          "a b",
		"A=a#b":                          "a#b",
		"A=\"a b # c\"":                  "a b # c",
		"A='$HOME'":                      "$HOME",
		"A={\"a\":1}":                    "{\"a\":1}",
		"A=it's fine":                    "it's fine",
		"A=amqp://u:p%24@host:5672/%2F":  "amqp://u:p%24@host:5672/%2F",
		"A=\" b \"":                      " b ",
		"a=1\nA=b\n#A=c\nB_2=d":          "b",
		"A='amqp://u:pa$w@rabbit:5672/'": "amqp://u:pa$w@rabbit:5672/",
	} {
		if got, complaint := loaded(t, content); got != want || complaint != "" {
			t.Errorf("%q: A is %q, want %q; it says %q", content, got, want, complaint)
		}
	}
	const line2 = "error: .env, line 2: "
	for line, want := range map[string]string{
		"A=amqp://u:SECRET$w@rabbit":  "a $ begins the name of a variable",
		"A=amqp://u:SECRET$$w@rabbit": "a $ begins the name of a variable",
		"A=\"SECRET$w\"":              "a $ begins the name of a variable",
		"A='SECRET''s'":               "a quote stands within quotes",
		"A='SECRET\\'s'":              "a quote stands within quotes",
		"A=SECRET # note":             "a # after a space begins a comment",
		"export A=SECRET":             "leave out export",
		"A = SECRET":                  "write NAME=value",
		"  A=SECRET":                  "write NAME=value",
		"A":                           "write NAME=value",
		"A: SECRET":                   "write NAME=value",
		"A=SECRET\"":                  "a quote stands at one end",
		"A='SECRET":                   "a quote stands at one end",
		"A='":                         "a quote stands at one end",
		"A=SECRET\r":                  "it ends with a carriage return",
		"\ufeffA=SECRET":              "the file begins with a byte order mark",
		"A=\"SECRET\\nb\"":            "a backslash stands within quotes",
		"A=SECRET ":                   "a space stands at an end",
		"A= SECRET":                   "a space stands at an end",
		"B=SECRET":                    "B is set by a line above",
	} {
		got, complaint := loaded(t, "B=1\n"+line+"\n")
		if !strings.HasPrefix(complaint, line2+want) || strings.Contains(complaint, "SECRET") || got != "" {
			t.Errorf("%q: it says %q and sets A to %q", line, complaint, got)
		}
	}
}

// TestExampleEnvFile activates every line of .env.example.
func TestExampleEnvFile(t *testing.T) {
	t.Parallel()
	example, err := os.ReadFile("../.env.example")
	if err != nil {
		t.Fatal(err)
	}
	var content strings.Builder
	for line := range strings.Lines(string(example)) {
		if setting, commented := strings.CutPrefix(line, "# "); commented && strings.Contains(strings.Fields(setting + " .")[0], "=") {
			line = setting
		}
		content.WriteString(line)
	}
	if strings.Count(content.String(), "\nRPC_") < 20 {
		t.Fatalf("the settings of .env.example were not found in\n%s", content.String())
	}
	if _, complaint := loaded(t, content.String()); complaint != "" {
		t.Error(complaint)
	}
}
