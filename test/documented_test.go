// Package test holds tests with needs beyond the module under test: brokers, browsers,
// programs in other languages. Each kind has its own folder.
package test

import (
	"os"
	"path/filepath"
	"regexp"
	"testing"
)

// TestDocumentedTestsExist: every test in the tables of docs/reliability.md and docs/security.md
// exists.
func TestDocumentedTestsExist(t *testing.T) {
	t.Parallel()
	there := map[string]bool{}
	for _, pattern := range []string{"*/*_test.go", "../pkg/amqpx/*_test.go", "../pkg/amqpx/internal/*/*_test.go"} {
		files, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range files {
			source, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range regexp.MustCompile(`(?m)^func (Test\w+)\(`).FindAllSubmatch(source, -1) {
				there[string(m[1])] = true
			}
		}
	}
	for name, least := range map[string]int{"reliability.md": 20, "security.md": 10} {
		doc, err := os.ReadFile(filepath.Join("..", "docs", name))
		if err != nil {
			t.Fatal(err)
		}
		named := regexp.MustCompile("`(Test\\w+)`").FindAllSubmatch(doc, -1)
		if len(named) < least {
			t.Errorf("docs/%s names %d tests only", name, len(named))
		}
		for _, m := range named {
			if !there[string(m[1])] {
				t.Errorf("docs/%s names %s, which is no test", name, m[1])
			}
		}
	}
}
