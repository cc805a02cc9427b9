package supply

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// isLicence matches the names of files that must go with a program.
var isLicence = regexp.MustCompile(`(?i)^(licen[cs]e|copying|notice)([.-].*)?$`) //nolint:gochecknoglobals // a constant in all but syntax.

const head = `THIRD-PARTY NOTICES

The programs of this repository contain code of the modules below, and of the standard library of Go. The table has the SPDX
expression of each module's licence; the texts follow. "make notices" writes this file from the files of the modules that the
programs link for Linux, and a test compares it. The versions are in the SBOM of each image.

The images also contain /etc/ssl/certs/ca-certificates.crt, the certificate authorities that Mozilla trusts, under the Mozilla
Public License 2.0 (https://www.mozilla.org/MPL/2.0/). Its source is the file certdata.txt of Mozilla's library NSS
(https://hg.mozilla.org/projects/nss), as packaged in ca-certificates of Debian.

`

// Notices returns the notices of the programs in the packages, from the licence files in the
// module cache. It needs the go command, and fails if a module has no licence file, or none that
// is known.
func Notices(ctx context.Context, packages ...string) ([]byte, error) {
	licences, err := Licences()
	if err != nil {
		return nil, err
	}
	n := &notices{programs: make(map[string][]string), files: make(map[string]string)}
	for _, pkg := range packages {
		if err := n.collect(ctx, pkg); err != nil {
			return nil, err
		}
	}
	var out bytes.Buffer
	out.WriteString(head)
	for _, module := range sortedKeys(n.programs) {
		if licences[module] == "" {
			return nil, fmt.Errorf("the licence of the module %s is not known: read it, and add a line to internal/supply/licences.txt", module)
		}
		fmt.Fprintf(&out, "%-60s %-28s %s\n", module, licences[module], strings.Join(n.programs[module], ", "))
	}
	if err := n.writeTexts(&out); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

// Linked lists the modules that a program's package is built from, with their folders, without
// the modules of this repository.
func Linked(ctx context.Context, pkg string) (map[string]string, error) {
	packages, err := linked(ctx, pkg)
	modules := make(map[string]string)
	for _, p := range packages {
		modules[p.module] = p.root
	}
	return modules, err
}

// linkedPackage is a package of a program, its module, and their folders.
type linkedPackage struct{ module, root, dir string }

func linked(ctx context.Context, pkg string) ([]linkedPackage, error) {
	// The standard library once, and every package outside of this repository.
	const format = `{{if .Standard}}{{if eq .ImportPath "runtime"}}` + Standard + `|{{.Root}}|{{.Root}}{{end}}` +
		`{{else if not .Module.Main}}{{with .Module.Replace}}{{if .Version}}{{$.Module.Path}}|{{$.Module.Dir}}|{{$.Dir}}{{end}}` +
		`{{else}}{{.Module.Path}}|{{.Module.Dir}}|{{.Dir}}{{end}}{{end}}`
	cmd := exec.CommandContext(ctx, "go", "list", "-deps", "-f", format, pkg) //nolint:gosec // a package of the caller's choice is the purpose.
	cmd.Env = append(os.Environ(), "GOOS=linux", "CGO_ENABLED=0")
	out, err := cmd.Output()
	if err != nil {
		if failed := new(exec.ExitError); errors.As(err, &failed) {
			err = fmt.Errorf("%w: %s", err, failed.Stderr)
		}
		return nil, fmt.Errorf("go list %s: %w", pkg, err)
	}
	var all []linkedPackage
	for line := range strings.Lines(string(out)) {
		fields := strings.Split(strings.TrimSpace(line), "|")
		if len(fields) != 3 {
			continue // of this repository, or another package of the standard library
		}
		all = append(all, linkedPackage{fields[0], fields[1], fields[2]})
	}
	return all, nil
}

// notices are the modules of some programs, and their licence files.
type notices struct {
	programs map[string][]string // by module
	files    map[string]string   // name in the notices to path
}

func (n *notices) collect(ctx context.Context, pkg string) error {
	packages, err := linked(ctx, pkg)
	if err != nil {
		return err
	}
	program := path.Base(pkg)
	for _, p := range packages {
		if programs := n.programs[p.module]; !slices.Contains(programs, program) {
			n.programs[p.module] = append(programs, program)
		}
		// A package may have a licence of its own, or one that its folder's parent has.
		for dir := p.dir; ; dir = filepath.Dir(dir) {
			if err := n.addFiles(p, dir); err != nil {
				return err
			}
			if dir == p.root {
				break
			}
		}
	}
	return nil
}

func (n *notices) addFiles(p linkedPackage, dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, entry := range entries {
		file := filepath.Join(dir, entry.Name())
		relative, err := filepath.Rel(p.root, file)
		if err != nil {
			return err
		}
		if isLicence.MatchString(entry.Name()) && entry.Type().IsRegular() {
			n.files[path.Join(p.module, filepath.ToSlash(relative))] = file
		}
	}
	return nil
}

// writeTexts writes each different text once, below the names of its files.
func (n *notices) writeTexts(out *bytes.Buffer) error {
	texts := make(map[string][]string) // text to names
	for _, name := range sortedKeys(n.files) {
		content, err := os.ReadFile(n.files[name])
		if err != nil {
			return err
		}
		text := strings.Trim(strings.ReplaceAll(string(content), "\r\n", "\n"), "\n")
		texts[text] = append(texts[text], name)
	}
	for module := range n.programs {
		if !slices.ContainsFunc(sortedKeys(n.files), func(name string) bool { return path.Dir(name) == module }) {
			return fmt.Errorf("the module %s has no licence file", module)
		}
	}
	ordered := slices.SortedFunc(maps.Keys(texts), func(a, b string) int { return cmp.Compare(texts[a][0], texts[b][0]) })
	rule := strings.Repeat("=", 80)
	for _, text := range ordered {
		fmt.Fprintf(out, "\n%s\n%s\n%s\n\n%s\n", rule, strings.Join(texts[text], "\n"), rule, text)
	}
	return nil
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
