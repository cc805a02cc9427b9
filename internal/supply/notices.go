package supply

import (
	"bytes"
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
var isLicence = regexp.MustCompile(`(?i)^(licen[cs]e|copying|notice)([.-].*)?$`)

const head = `THIRD-PARTY NOTICES

The programs of this repository contain code of the modules below, and of the standard library of Go. The table has the SPDX
expression of each module's licence; the texts follow. "make notices" writes this file from the files of the modules that the
programs link for Linux, and a test compares it. The versions are in the SBOM of each image.

The images also contain /etc/ssl/certs/ca-certificates.crt, the certificate authorities that Mozilla trusts, under the Mozilla
Public License 2.0 (https://www.mozilla.org/MPL/2.0/). Its source is the file certdata.txt of Mozilla's library NSS
(https://hg.mozilla.org/projects/nss), as packaged in ca-certificates of Debian.

`

// Module is a module that programs link, or the standard library.
type Module struct {
	Path     string
	Programs []string          // by name
	Files    map[string]string // of licences and notices: name within the module to path
}

// Notices returns the notices of the programs in the packages of the module in the folder, from
// the licence files in the module cache. It needs the go command, and fails if the licence of a
// module is not known, or has no file.
func Notices(ctx context.Context, folder string, packages ...string) ([]byte, error) {
	licences, err := Licences()
	if err != nil {
		return nil, err
	}
	modules, err := Modules(ctx, folder, packages...)
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	out.WriteString(head)
	for _, m := range modules {
		if licences[m.Path] == "" {
			return nil, unknown(m.Path)
		}
		if len(m.Files) == 0 {
			return nil, fmt.Errorf("the module %s has no licence file", m.Path)
		}
		fmt.Fprintf(&out, "%-64s %-28s %s\n", m.Path, licences[m.Path], strings.Join(m.Programs, ", "))
	}
	if err := writeTexts(&out, modules); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

// Modules returns the modules that the programs in the packages of the module in the folder are
// built from, ordered by path, without the modules of this repository. It needs the go command.
func Modules(ctx context.Context, folder string, packages ...string) ([]Module, error) {
	modules := make(map[string]*Module)
	for _, pkg := range packages {
		found, err := linked(ctx, folder, pkg)
		if err != nil {
			return nil, err
		}
		for _, p := range found {
			m := modules[p.module]
			if m == nil {
				m = &Module{Path: p.module, Files: make(map[string]string)}
				modules[p.module] = m
			}
			if program := path.Base(pkg); !slices.Contains(m.Programs, program) {
				m.Programs = append(m.Programs, program)
			}
			if err := m.addFiles(p); err != nil {
				return nil, err
			}
		}
	}
	var all []Module
	for _, name := range sortedKeys(modules) {
		all = append(all, *modules[name])
	}
	return all, nil
}

// linkedPackage is a package of a program, its module, and their folders.
type linkedPackage struct{ module, root, dir string }

func linked(ctx context.Context, folder, pkg string) ([]linkedPackage, error) {
	// The standard library once, and every package outside of this repository.
	const format = `{{if .Standard}}{{if eq .ImportPath "runtime"}}` + Standard + `|{{.Root}}|{{.Root}}{{end}}` +
		`{{else if not .Module.Main}}{{with .Module.Replace}}{{if .Version}}{{$.Module.Path}}|{{$.Module.Dir}}|{{$.Dir}}{{end}}` +
		`{{else}}{{.Module.Path}}|{{.Module.Dir}}|{{.Dir}}{{end}}{{end}}`
	cmd := exec.CommandContext(ctx, "go", "list", "-deps", "-f", format, pkg) //nolint:gosec // a package of the caller's choice is the purpose.
	cmd.Dir = folder
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

// addFiles adds the files of a package: those in its folder, and in the folders above up to the
// module's.
func (m *Module) addFiles(p linkedPackage) error {
	for dir := p.dir; ; dir = filepath.Dir(dir) {
		entries, err := os.ReadDir(dir)
		if err != nil {
			return err
		}
		for _, entry := range entries {
			file := filepath.Join(dir, entry.Name())
			name, err := filepath.Rel(p.root, file)
			if err != nil {
				return err
			}
			if isLicence.MatchString(entry.Name()) && entry.Type().IsRegular() {
				m.Files[filepath.ToSlash(name)] = file
			}
		}
		if dir == p.root {
			return nil
		}
	}
}

// writeTexts writes each different text once, below the names of its files.
func writeTexts(out *bytes.Buffer, modules []Module) error {
	names := make(map[string][]string) // by text
	var texts []string
	for _, m := range modules {
		for _, name := range sortedKeys(m.Files) {
			content, err := os.ReadFile(m.Files[name])
			if err != nil {
				return err
			}
			text := strings.Trim(strings.ReplaceAll(string(content), "\r\n", "\n"), "\n")
			if names[text] == nil {
				texts = append(texts, text)
			}
			names[text] = append(names[text], path.Join(m.Path, name))
		}
	}
	rule := strings.Repeat("=", 80)
	for _, text := range texts {
		fmt.Fprintf(out, "\n%s\n%s\n%s\n\n%s\n", rule, strings.Join(names[text], "\n"), rule, text)
	}
	return nil
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
