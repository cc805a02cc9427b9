package documented

import (
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestCookbook: every block of code in the cookbook is part of a test or of an example, except for
// indentation and linter directives.
func TestCookbook(t *testing.T) {
	t.Parallel()
	var sources strings.Builder
	for _, pattern := range []string{"pkg/*/example*_test.go", "pkg/*/*/example*_test.go"} {
		files, err := filepath.Glob(filepath.Join(root, pattern))
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			sources.WriteString(withoutIndentation(read(t, strings.TrimPrefix(file, root))))
		}
	}
	text := read(t, "docs", "cookbook.md")
	blocks := regexp.MustCompile("(?s)```go\n(.*?)```").FindAllStringSubmatch(text, -1)
	if n := strings.Count(text, "```"); len(blocks) < 10 || n != 2*len(blocks) {
		t.Errorf("docs/cookbook.md has %d blocks of Go, of %d", len(blocks), n/2)
	}
	for _, m := range blocks {
		if !strings.Contains(sources.String(), withoutIndentation(m[1])) {
			t.Errorf("no example has this block of docs/cookbook.md:\n%s", m[1])
		}
	}
}

// withoutIndentation returns a source without indentation and linter directives.
func withoutIndentation(source string) string {
	var b strings.Builder
	for line := range strings.Lines(source) {
		code, _, _ := strings.Cut(line, " //nolint:")
		b.WriteString(strings.TrimSpace(code) + "\n")
	}
	return b.String()
}

// TestLinks: the documents for users of the library link to files that exist.
func TestLinks(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"tutorial.md", "cookbook.md"} {
		for _, m := range regexp.MustCompile(`\]\(([^)#:"]+)(#[^)]*)?\)`).FindAllStringSubmatch(read(t, "docs", name), -1) {
			if found, err := filepath.Glob(filepath.Join(root, "docs", m[1])); err != nil || len(found) != 1 {
				t.Errorf("docs/%s links to %s, which is not there", name, m[1])
			}
		}
	}
}
