package documented

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// levels returns the methods of a logger whose lines operators see.
func levels() []string { return []string{"Info", "Warn", "Error"} }

// messages returns the constant texts of the log lines in the code, with their places.
func messages(t *testing.T) map[string]string {
	t.Helper()
	found := make(map[string]string)
	for _, dir := range []string{"pkg", "services", "internal"} {
		err := filepath.WalkDir(filepath.Join(root, dir), func(path string, _ fs.DirEntry, err error) error {
			if err != nil || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
				return err
			}
			file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
			if err != nil {
				return err
			}
			ast.Inspect(file, func(n ast.Node) bool {
				if call, ok := n.(*ast.CallExpr); ok {
					if text := message(call); text != "" {
						found[text] = path
					}
				}
				return true
			})
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return found
}

// message returns the text of a logging call: a logger's method, Log with a level as its first
// argument, or a method of a variable named log.
func message(call *ast.CallExpr) string {
	place := 0
	switch f := call.Fun.(type) {
	case *ast.SelectorExpr:
		switch {
		case f.Sel.Name == "Log" || f.Sel.Name == "Check":
			place = 1
		case !slices.Contains(levels(), f.Sel.Name):
			return ""
		}
	case *ast.Ident:
		if f.Name != "log" {
			return ""
		}
	default:
		return ""
	}
	if len(call.Args) <= place {
		return ""
	}
	literal, ok := call.Args[place].(*ast.BasicLit)
	if !ok || literal.Kind != token.STRING {
		return ""
	}
	text, err := strconv.Unquote(literal.Value)
	if err != nil {
		return ""
	}
	return text
}

func TestEveryLogMessageIsInTheManual(t *testing.T) {
	t.Parallel()
	inCode, inManual := messages(t), firstCells(t, "## Log")
	if len(inCode) < 15 {
		t.Fatalf("found only %d messages in the code", len(inCode))
	}
	for _, text := range slices.Sorted(maps.Keys(inCode)) {
		if !inManual[text] {
			t.Errorf("docs/operations.md does not list the log message %q of %s", text, inCode[text])
		}
	}
	for _, text := range slices.Sorted(maps.Keys(inManual)) {
		if inCode[text] == "" {
			t.Errorf("docs/operations.md lists the log message %q, which nothing logs", text)
		}
	}
}
