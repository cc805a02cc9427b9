package transport

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// The table has a row for every exported kind of fault, and no other rows.
func TestFaultTableIsWhole(t *testing.T) {
	t.Parallel()
	file, err := parser.ParseFile(token.NewFileSet(), "fault_table.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	var exported []string
	ast.Inspect(file, func(n ast.Node) bool {
		if spec, ok := n.(*ast.ValueSpec); ok {
			if kind, ok := spec.Type.(*ast.Ident); ok && kind.Name == "FaultKind" {
				literal, ok := spec.Values[0].(*ast.BasicLit)
				if !ok {
					t.Fatalf("%v is no literal", spec.Names)
				}
				text, err := strconv.Unquote(literal.Value)
				if err != nil {
					t.Fatal(err)
				}
				exported = append(exported, text)
			}
		}
		return true
	})
	var rows []string
	words := map[string]bool{}
	for _, row := range faultTable {
		rows = append(rows, string(row.kind))
		if words[row.words] {
			t.Errorf("two kinds have the words %q", row.words)
		}
		words[row.words] = true
	}
	slices.Sort(exported)
	slices.Sort(rows)
	if !slices.Equal(rows, exported) {
		t.Errorf("the table has the kinds\n%v, exported are\n%v", rows, exported)
	}
}

// The manual has the same table, with the action to take.
func TestFaultTableIsInTheManual(t *testing.T) {
	t.Parallel()
	manual, err := os.ReadFile(filepath.Join("..", "..", "..", "..", "docs", "operations.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, section, _ := strings.Cut(string(manual), "## Faults of the broker\n")
	section, _, _ = strings.Cut(section, "\n## ")
	var documented, inCode [][4]string
	for _, m := range regexp.MustCompile("(?m)^\\| `([^`]+)` \\| `([^`]+)` \\| ([^|]+) \\| (\\w+) \\| \\S.*\\|$").FindAllStringSubmatch(section, -1) {
		documented = append(documented, [4]string(m[1:]))
	}
	for _, row := range faultTable {
		pace := "quick"
		if row.pace == paceSlow {
			pace = "slow"
		}
		inCode = append(inCode, [4]string{string(row.kind), row.words, row.whose, pace})
	}
	for i := range max(len(documented), len(inCode)) {
		var there, here [4]string
		if i < len(documented) {
			there = documented[i]
		}
		if i < len(inCode) {
			here = inCode[i]
		}
		if there != here {
			t.Fatalf("row %d of the manual is\n%q, of the code\n%q", i+1, there, here)
		}
	}
}
