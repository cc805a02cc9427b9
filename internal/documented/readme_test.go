package documented

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// read returns a file of the repository.
func read(t *testing.T, path ...string) string {
	t.Helper()
	content, err := os.ReadFile(filepath.Join(append([]string{root}, path...)...))
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}

// TestPrograms: the two programs of the README are the examples server and client.
func TestPrograms(t *testing.T) {
	t.Parallel()
	var got []string
	for _, m := range regexp.MustCompile("(?s)```go\n(.*?)```").FindAllStringSubmatch(read(t, "README.md"), -1) {
		got = append(got, m[1])
	}
	want := []string{read(t, "examples", "server", "main.go"), read(t, "examples", "client", "main.go")}
	if !slices.Equal(got, want) {
		t.Errorf("the %d programs of README.md are not examples/server/main.go and examples/client/main.go:\n%s",
			len(got), strings.Join(got, "\n"))
	}
}

// TestExamplesAreListed: the README lists every example.
func TestExamplesAreListed(t *testing.T) {
	t.Parallel()
	entries, err := os.ReadDir(filepath.Join(root, "examples"))
	if err != nil {
		t.Fatal(err)
	}
	readme := read(t, "README.md")
	for _, entry := range entries {
		if !strings.Contains(readme, "(examples/"+entry.Name()+"/main.go)") {
			t.Errorf("README.md does not link to examples/%s/main.go", entry.Name())
		}
	}
}

// TestSupportedVersions: the README states the version of Go that every module requires and CI
// uses, and the versions of RabbitMQ that CI uses.
func TestSupportedVersions(t *testing.T) {
	t.Parallel()
	stated := regexp.MustCompile(`Go (\d+\.\d+) and later; RabbitMQ (\d+)\.\d+ and later, and (\d+)\.`).FindStringSubmatch(read(t, "README.md"))
	if stated == nil {
		t.Fatal("README.md does not state the supported versions")
	}
	var modules []string
	for _, pattern := range []string{"go.mod", "*/go.mod", "pkg/*/go.mod"} {
		found, err := fs.Glob(os.DirFS(root), pattern)
		if err != nil {
			t.Fatal(err)
		}
		modules = append(modules, found...)
	}
	for _, module := range modules {
		if !strings.Contains(read(t, module), "\ngo "+stated[1]+".0\n") {
			t.Errorf("%s requires another version of Go than README.md, %s", module, stated[1])
		}
	}
	ci := read(t, ".github", "workflows", "ci.yml")
	for _, want := range []string{
		`go: ["` + stated[1] + `", stable]`,
		`rabbitmq: ["` + stated[2] + `", "` + stated[3] + `"]`,
	} {
		if !strings.Contains(ci, want) {
			t.Errorf("CI does not have %s, as README.md states", want)
		}
	}
}
