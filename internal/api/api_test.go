// Package api has no code: its test compares the exported API of the libraries with the API
// listed in their folders.
package api

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"go/ast"
	"go/importer"
	"go/parser"
	"go/token"
	"go/types"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

//nolint:gochecknoglobals // the testing package reads flags from package variables.
var update = flag.Bool("update", false, "write the API into testdata/api.txt of each library")

// module is the first part of the paths of all packages of this repository.
const module = "rabbitmq-rpc"

// TestExportedAPI: the exported identifiers of each library are those of its testdata/api.txt,
// and none of them mentions a type that users cannot import.
func TestExportedAPI(t *testing.T) {
	t.Parallel()
	libraries := []string{module + "/pkg/amqpx", module + "/pkg/amqpx/amqpxtest", module + "/pkg/amqpxgrpc", module + "/pkg/amqpxotel", module + "/pkg/amqpxprom"}
	compiled := list(t, ".", libraries...)
	// Nothing in the module of this test imports these packages, so that only their own module can.
	for own, packages := range map[string][]string{
		"amqpxcodec": {module + "/pkg/amqpxcodec/amqpxproto", module + "/pkg/amqpxcodec/amqpxzstd"},
		"amqpxredis": {module + "/pkg/amqpxredis"},
	} {
		libraries = append(libraries, packages...)
		maps.Copy(compiled, list(t, filepath.Join("..", "..", "pkg", own), packages...))
	}
	imported := importer.ForCompiler(token.NewFileSet(), "gc", func(path string) (io.ReadCloser, error) {
		return os.Open(compiled[path].Export)
	})
	for _, path := range libraries {
		pkg, err := imported.Import(path)
		if err != nil {
			t.Fatal(err)
		}
		got := describe(pkg)
		for _, line := range got {
			if internal.MatchString(line) {
				t.Errorf("%s: an internal type is part of the API: %s", path, line)
			}
		}
		compare(t, filepath.Join(compiled[path].Dir, "testdata", "api.txt"), got)
	}
}

// TestProductionHasNoTestCode: all libraries, examples and services link nothing of the test kit.
func TestProductionHasNoTestCode(t *testing.T) {
	t.Parallel()
	for dir, packages := range map[string][]string{
		".": {
			"pkg/amqpx", "pkg/amqpxgrpc", "pkg/amqpxotel", "pkg/amqpxprom", "examples/...",
			"services/rpc-client", "services/rpc-server", "services/rpc-certificates", "services/rpc-definitions",
		},
		// Nothing in the module of this test imports these packages, so that only their own module can.
		"../../pkg/amqpxcodec": {"pkg/amqpxcodec/amqpxproto", "pkg/amqpxcodec/amqpxzstd"},
		"../../pkg/amqpxredis": {"pkg/amqpxredis"},
	} {
		for i := range packages {
			packages[i] = module + "/" + packages[i]
		}
		linked := list(t, filepath.FromSlash(dir), packages...)
		for _, path := range packages {
			if _, ok := linked[path]; !ok && !strings.HasSuffix(path, "...") {
				t.Errorf("%s is not among the %d packages that are listed", path, len(linked))
			}
		}
		for path := range linked {
			if path == "testing" || strings.HasSuffix(path, "test") && strings.HasPrefix(path, module) {
				t.Errorf("%s is linked", path)
			}
		}
	}
}

// listed is a package as described by go list.
type listed struct{ ImportPath, Dir, Export string }

// list returns the packages and their dependencies, compiled in the module of a folder, by import path.
func list(t *testing.T, dir string, paths ...string) map[string]listed {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", append([]string{"list", "-export", "-deps", "-json=ImportPath,Dir,Export"}, paths...)...)
	cmd.Dir = dir
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %v\n%s", cmd, err, stderr.Bytes())
	}
	all := make(map[string]listed)
	for decoder := json.NewDecoder(bytes.NewReader(out)); ; {
		var p listed
		if err := decoder.Decode(&p); errors.Is(err, io.EOF) {
			return all
		} else if err != nil {
			t.Fatal(err)
		}
		all[p.ImportPath] = p
	}
}

// compare fails the test if the file does not hold the lines, or writes the file if asked to.
func compare(t *testing.T, file string, got []string) {
	t.Helper()
	if *update {
		if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, []byte(strings.Join(got, "")), 0o644)); err != nil {
			t.Fatal(err)
		}
		return
	}
	content, err := os.ReadFile(file)
	if err != nil {
		t.Fatalf("%v; make api writes it", err)
	}
	var diff strings.Builder
	want := slices.Collect(strings.Lines(string(content)))
	for _, line := range want {
		if !slices.Contains(got, line) {
			diff.WriteString("- " + line)
		}
	}
	for _, line := range got {
		if !slices.Contains(want, line) {
			diff.WriteString("+ " + line)
		}
	}
	if diff.Len() > 0 || len(got) != len(want) {
		t.Errorf("the exported API differs from %s. If this is intended, run make api, and tell users in CHANGELOG.md:\n%s", file, &diff)
	}
}

// TestDescribe: an alias for an internal type is described like a type of the package, and any
// other mention of an internal type shows the type's path.
func TestDescribe(t *testing.T) {
	t.Parallel()
	sources := [][2]string{
		{"example.org/lib/internal/wire", `package wire
			type Request struct { Method string; size int }
			func (*Request) With(key string) *Request { return nil }
			type Frame struct{}`},
		{"example.org/lib", `package lib
			import "example.org/lib/internal/wire"
			const Limit Code = 3
			type Code int
			func (Code) String() string { return "" }
			type Request = wire.Request
			type Option interface{ apply() }
			func Send(r *Request, opts ...Option) error { return nil }
			func Raw(*wire.Frame) {}`},
	}
	done := packages{}
	for _, source := range sources {
		files := token.NewFileSet()
		file, err := parser.ParseFile(files, "source.go", source[1], 0)
		if err != nil {
			t.Fatal(err)
		}
		pkg, err := (&types.Config{Importer: done}).Check(source[0], files, []*ast.File{file}, nil)
		if err != nil {
			t.Fatal(err)
		}
		done[source[0]] = pkg
	}
	want := []string{
		"const Limit Code = 3\n",
		"field Request.Method string\n",
		"func Raw(*example.org/lib/internal/wire.Frame)\n",
		"func Send(r *Request, opts ...Option) error\n",
		"method (*Request) With(key string) *Request\n",
		"method (Code) String() string\n",
		"type Code int\n",
		"type Option interface with unexported methods\n",
		"type Request struct\n",
	}
	if got := describe(done["example.org/lib"]); !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, ""), strings.Join(want, ""))
	}
}

// packages is an importer of packages that are there already.
type packages map[string]*types.Package

func (p packages) Import(path string) (*types.Package, error) { return p[path], nil }
