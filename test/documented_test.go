// Package test holds tests with needs beyond the module under test: brokers, browsers,
// programs in other languages. Each kind has its own folder.
package test

import (
	"os"
	"path/filepath"
	"regexp"
	"testing"
)

// TestDocumentedTestsExist: every test in the table of docs/reliability.md exists.
func TestDocumentedTestsExist(t *testing.T) {
	t.Parallel()
	doc, err := os.ReadFile(filepath.Join("..", "docs", "reliability.md"))
	if err != nil {
		t.Fatal(err)
	}
	there := map[string]bool{}
	for _, pattern := range []string{"*/*_test.go", "../pkg/amqpx/*_test.go"} {
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
	named := regexp.MustCompile("`(Test\\w+)`").FindAllSubmatch(doc, -1)
	if len(named) < 20 {
		t.Errorf("the document names %d tests only", len(named))
	}
	for _, m := range named {
		if !there[string(m[1])] {
			t.Errorf("docs/reliability.md names %s, which is no test", m[1])
		}
	}
}
