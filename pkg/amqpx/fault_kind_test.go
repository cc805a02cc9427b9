package amqpx

import (
	"go/ast"
	"go/parser"
	"go/token"
	"slices"
	"strings"
	"testing"
)

// Every kind of fault that a connection reports is exported to users.
func TestEveryFaultKindIsExported(t *testing.T) {
	t.Parallel()
	kinds := func(path string) (names []string) {
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(file, func(n ast.Node) bool {
			if spec, ok := n.(*ast.ValueSpec); ok && strings.HasPrefix(spec.Names[0].Name, "Fault") {
				names = append(names, spec.Names[0].Name)
			}
			return true
		})
		slices.Sort(names)
		return names
	}
	ours, theirs := kinds("status.go"), kinds("internal/transport/fault_table.go")
	if len(ours) < 40 || !slices.Equal(ours, theirs) {
		t.Errorf("exported are %v, the connections have %v", ours, theirs)
	}
}
