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

// line is a constant text that the code logs.
type line struct {
	path string
	// fields are the names in the call itself; other code may add more.
	fields []string
}

// messages returns the constant texts of the log lines in the code.
func messages(t *testing.T) map[string]line {
	t.Helper()
	found := make(map[string]line)
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
						found[text] = line{path, append(found[text].fields, fields(call)...)}
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

// fields returns the names of the fields that are built among the arguments of a logging call.
func fields(logged *ast.CallExpr) []string {
	var names []string
	ast.Inspect(logged, func(n ast.Node) bool {
		call, ok := n.(*ast.CallExpr)
		if !ok || len(call.Args) == 0 {
			return true
		}
		f, ok := call.Fun.(*ast.SelectorExpr)
		if !ok {
			return true
		}
		if from, ok := f.X.(*ast.Ident); !ok || from.Name != "zap" {
			return true
		}
		if name, ok := call.Args[0].(*ast.BasicLit); ok && name.Kind == token.STRING {
			names = append(names, strings.Trim(name.Value, `"`))
		} else if f.Sel.Name == "Error" {
			names = append(names, "error")
		}
		return true
	})
	return names
}

// TestEveryLogFieldIsInTheManual: the row of a message names the fields of its lines.
func TestEveryLogFieldIsInTheManual(t *testing.T) {
	t.Parallel()
	rows := strings.Split(section(t, "## Log"), "\n")
	checked := 0
	for text, l := range messages(t) {
		at := slices.IndexFunc(rows, func(row string) bool {
			cells := strings.Split(row, "|")
			return len(cells) > 2 && strings.Contains(cells[1], "`"+text+"`")
		})
		if at < 0 {
			continue // TestEveryLogMessageIsInTheManual fails
		}
		for _, field := range l.fields {
			checked++
			if !strings.Contains(rows[at], "`"+field+"`") {
				t.Errorf("docs/operations.md does not list the field %s of %q in %s", field, text, l.path)
			}
		}
	}
	if checked < 50 {
		t.Errorf("found only %d fields in the code", checked)
	}
}

func TestEveryLogMessageIsInTheManual(t *testing.T) {
	t.Parallel()
	inCode, inManual := messages(t), firstCells(t, "## Log")
	if len(inCode) < 15 {
		t.Fatalf("found only %d messages in the code", len(inCode))
	}
	for _, text := range slices.Sorted(maps.Keys(inCode)) {
		if !inManual[text] {
			t.Errorf("docs/operations.md does not list the log message %q of %s", text, inCode[text].path)
		}
	}
	for _, text := range slices.Sorted(maps.Keys(inManual)) {
		if inCode[text].path == "" {
			t.Errorf("docs/operations.md lists the log message %q, which nothing logs", text)
		}
	}
}
