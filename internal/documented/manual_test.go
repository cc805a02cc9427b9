// Package documented has no code: its tests check that the manual, docs/operations.md, and the
// README agree with the code.
package documented

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

const root = "../.."

// section returns the text of the manual below a heading, up to the next heading of the same
// level.
func section(t *testing.T, heading string) string {
	t.Helper()
	content, err := os.ReadFile(filepath.Join(root, "docs", "operations.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, found := strings.Cut(string(content), "\n"+heading+"\n")
	if !found {
		t.Fatalf("docs/operations.md has no section %q", heading)
	}
	level, _, _ := strings.Cut(heading, " ")
	text, _, _ := strings.Cut(rest, "\n"+level+" ")
	return text
}

// firstCells returns the text in code quotes in the first column of a section's tables.
func firstCells(t *testing.T, heading string) map[string]bool {
	t.Helper()
	quoted := regexp.MustCompile("`([^`]+)`")
	found := make(map[string]bool)
	for line := range strings.Lines(section(t, heading)) {
		cells := strings.Split(line, "|")
		if !strings.HasPrefix(line, "|") || len(cells) < 3 {
			continue
		}
		for _, m := range quoted.FindAllStringSubmatch(cells[1], -1) {
			found[m[1]] = true
		}
	}
	return found
}
