package config

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const root = "../.."

// tagged returns the variables of every struct tag in the services and in their shared
// packages, with the defaults.
func tagged(t *testing.T) map[string]string {
	t.Helper()
	found := make(map[string]string)
	for _, dir := range []string{"services", "internal"} {
		err := filepath.WalkDir(filepath.Join(root, dir), func(path string, _ fs.DirEntry, err error) error {
			if err != nil || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
				return err
			}
			file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
			if err == nil {
				collectTags(file, found)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return found
}

func collectTags(file *ast.File, found map[string]string) {
	ast.Inspect(file, func(n ast.Node) bool {
		field, ok := n.(*ast.Field)
		if !ok || field.Tag == nil {
			return true
		}
		text, err := strconv.Unquote(field.Tag.Value)
		if err != nil {
			return true
		}
		tag := reflect.StructTag(text)
		if name := tag.Get("envconfig"); name != "" {
			found[name] = tag.Get("default")
		}
		return true
	})
}

func read(t *testing.T, name string) string {
	t.Helper()
	content, err := os.ReadFile(filepath.Join(root, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}

// exampleLines returns NAME=value lines, including commented lines.
func exampleLines(t *testing.T) map[string]string {
	t.Helper()
	found := make(map[string]string)
	line := regexp.MustCompile(`(?m)^#? ?([A-Z][A-Z0-9_]+)=(.*)$`)
	for _, m := range line.FindAllStringSubmatch(read(t, ".env.example"), -1) {
		if _, twice := found[m[1]]; twice {
			t.Errorf(".env.example lists %s twice", m[1])
		}
		found[m[1]] = strings.Trim(strings.TrimSpace(m[2]), `"'`)
	}
	return found
}

// tableRows returns the rows | `NAME` | default | of docs/operations.md.
func tableRows(t *testing.T) map[string]string {
	t.Helper()
	found := make(map[string]string)
	row := regexp.MustCompile("(?m)^\\| *`([A-Z][A-Z0-9_]+)` *\\|([^|]*)\\|")
	for _, m := range row.FindAllStringSubmatch(read(t, "docs/operations.md"), -1) {
		if _, twice := found[m[1]]; twice {
			t.Errorf("docs/operations.md lists %s twice", m[1])
		}
		value := strings.Trim(strings.TrimSpace(m[2]), "`")
		if value == "–" || value == "—" || value == "-" {
			value = ""
		}
		found[m[1]] = value
	}
	return found
}

// readElsewhere reports whether the build or the start scripts read the variable name, which
// may then be listed although no service reads it. Variables that compose only passes to a
// service do not count.
func readElsewhere(t *testing.T, name string) bool {
	t.Helper()
	if strings.HasPrefix(name, "COMPOSE_") || name == "GOGC" || name == "GOMEMLIMIT" { // read by the Go runtime
		return true
	}
	handedOn := regexp.MustCompile(`(?m)^ *` + name + `: *\$\{` + name + `\b.*$`)
	use := regexp.MustCompile(`(\$[({]?|ARG )` + name + `\b`)
	for _, pattern := range []string{"docker-compose*.yml", "compose/*.yml", "Dockerfile.*", "Makefile", "deploy/*"} {
		files, err := filepath.Glob(filepath.Join(root, pattern))
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			content, err := os.ReadFile(f)
			if err == nil && use.Match(handedOn.ReplaceAll(content, nil)) {
				return true
			}
		}
	}
	return false
}

func TestEveryVariableIsInTheExample(t *testing.T) {
	t.Parallel()
	listed := exampleLines(t)
	compare(t, ".env.example", listed)
}

func TestEveryVariableIsInTheManual(t *testing.T) {
	t.Parallel()
	compare(t, "docs/operations.md", tableRows(t))
}

// The manual lists the variables that the compose files read, and the variables that are not
// passed to the services.
func TestEveryVariableOfComposeIsInTheManual(t *testing.T) {
	t.Parallel()
	manual, pair := read(t, "docs/operations.md"), read(t, "docker-compose.yml")
	overlays, err := filepath.Glob(filepath.Join(root, "compose", "*.yml"))
	if err != nil || len(overlays) == 0 {
		t.Fatalf("no overlays: %v", err)
	}
	all := pair
	for _, path := range overlays {
		all += read(t, filepath.Join("compose", filepath.Base(path)))
	}
	taken := regexp.MustCompile(`\$\{([A-Z][A-Z0-9_]+)`).FindAllStringSubmatch(all, -1)
	if len(taken) < 50 {
		t.Fatalf("found only %d variables in the compose files", len(taken))
	}
	for _, m := range taken {
		if !strings.Contains(manual, "`"+m[1]+"`") {
			t.Errorf("docs/operations.md does not name %s", m[1])
		}
	}
	_, kept, _ := strings.Cut(manual, "The Compose file ignores")
	kept, _, _ = strings.Cut(kept, "override file")
	for _, name := range slices.Sorted(maps.Keys(tagged(t))) {
		if strings.Contains(pair, name+": ${"+name+":-") == strings.Contains(kept, "`"+name+"`") {
			t.Errorf("does compose hand %s on? docs/operations.md says something else", name)
		}
	}
}

func compare(t *testing.T, where string, listed map[string]string) {
	t.Helper()
	tags := tagged(t)
	if len(tags) < 20 {
		t.Fatalf("found only %d variables in the struct tags", len(tags))
	}
	for _, name := range slices.Sorted(maps.Keys(tags)) {
		value, ok := listed[name]
		switch {
		case !ok:
			t.Errorf("%s does not list %s", where, name)
		case name == "AMQP_URL":
			// Under compose the broker's name is not localhost.
		case value != tags[name]:
			t.Errorf("%s gives %s the default %q, the code %q", where, name, value, tags[name])
		}
	}
	for _, name := range slices.Sorted(maps.Keys(listed)) {
		if _, ok := tags[name]; !ok && !readElsewhere(t, name) {
			t.Errorf("%s lists %s, which nothing reads", where, name)
		}
	}
}
