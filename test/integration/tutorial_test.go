//go:build integration

package integration

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"rabbitmq-rpc/test/internal/rig"
)

// TestTutorial follows docs/tutorial.md: it writes every file, runs every command in one shell, in
// order, and compares what the commands print.
func TestTutorial(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile(filepath.Join(rig.Root(t), "docs", "tutorial.md"))
	if err != nil {
		t.Fatal(err)
	}
	script, want := tutorial(t, string(text))
	// The library is the one under test, wherever its repository is.
	here := "go mod edit -replace=rabbitmq-rpc/pkg/amqpx=" + filepath.Join(rig.Root(t), "pkg", "amqpx")
	script = strings.Replace(script, "go mod tidy", here+" && go mod tidy", 1)
	cmd := exec.CommandContext(rig.Patience(t), "bash", "-e", "-c", script)
	cmd.Dir = t.TempDir()
	cmd.Env = append(os.Environ(), "AMQP_URL="+exampleVhost(t), "GOWORK=off", "GOFLAGS=", "GOPROXY="+moduleCache(t), "GOSUMDB=off")
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil || !regexp.MustCompile("^"+want+"$").MatchString(string(out)) {
		t.Errorf("%v: the commands print %q, want %q\n%s", err, out, want, &stderr)
	}
}

// tutorial returns a script with the files and commands of the text, and a pattern of its output.
func tutorial(t *testing.T, text string) (script, want string) {
	t.Helper()
	files, commands := 0, 0
	for _, m := range regexp.MustCompile("(?s)(?:`([a-z_/.]+)`:\n\n)?```(\\w+)\n(.*?)```").FindAllStringSubmatch(text, -1) {
		name, language, block := m[1], m[2], m[3]
		switch {
		case language == "go" && name != "":
			files++
			script += "mkdir -p $(dirname " + name + "); cat >" + name + " <<'END_OF_FILE'\n" + block + "END_OF_FILE\n"
		case language == "console":
			for line := range strings.Lines(block) {
				if command, ok := strings.CutPrefix(line, "$ "); ok {
					commands++
					script += command
				} else {
					want += strings.ReplaceAll(regexp.QuoteMeta(line), "…", ".*")
				}
			}
		default:
			t.Errorf("a block of %s has no name of a file:\n%s", language, block)
		}
	}
	if files != 4 || commands < 8 {
		t.Errorf("found %d files and %d commands", files, commands)
	}
	return script, want
}

// moduleCache returns the cache of modules as a proxy, before the proxies in force: go mod tidy also wants
// modules that only tests of other modules import, which are not in every cache.
func moduleCache(t *testing.T) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "go", "env", "GOMODCACHE", "GOPROXY").Output()
	if err != nil {
		t.Fatal(err)
	}
	cache, proxies, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
	return "file://" + cache + "/cache/download," + proxies
}
