// Package supply describes the images of the services to their users: the parts of an image with
// their licences (SBOM), the texts of these licences (notices), and an image that has the same
// digest in every build of the same sources.
//
// Everything here is a function of its input: no time, no random number and no network, so that a
// second build gives the same bytes.
package supply

import (
	"bytes"
	"crypto/sha256"
	"debug/buildinfo"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
)

// Standard is the path of Go's standard library in an SBOM and in the list of licences.
const Standard = "std"

// own is the licence of this repository.
const own = "MIT"

// The elements of CycloneDX 1.6 that an SBOM of this project has; their order is the order of
// the file. https://cyclonedx.org/docs/1.6/json/
type (
	bom struct {
		Schema       string       `json:"$schema"`
		BOMFormat    string       `json:"bomFormat"`
		SpecVersion  string       `json:"specVersion"`
		Version      int          `json:"version"`
		Metadata     metadata     `json:"metadata"`
		Components   []component  `json:"components"`
		Dependencies []dependency `json:"dependencies"`
	}
	metadata struct {
		Component component `json:"component"`
	}
	component struct {
		Type       string     `json:"type"`
		Ref        string     `json:"bom-ref"`
		Name       string     `json:"name"`
		Version    string     `json:"version,omitempty"`
		Hashes     []hash     `json:"hashes,omitempty"`
		Licences   []licence  `json:"licenses"`
		PackageURL string     `json:"purl,omitempty"`
		Properties []property `json:"properties,omitempty"`
	}
	hash struct {
		Algorithm string `json:"alg"`
		Content   string `json:"content"`
	}
	licence struct {
		Expression string `json:"expression"`
	}
	property struct {
		Name  string `json:"name"`
		Value string `json:"value"`
	}
	dependency struct {
		Ref       string   `json:"ref"`
		DependsOn []string `json:"dependsOn"`
	}
)

// File is a file of an image that is no program of this repository.
type File struct {
	Path    string
	Licence string // an SPDX expression
}

// Image is the content of an image.
type Image struct {
	Name, Version string
	Programs      []string // paths of binaries
	Files         []File
}

// SBOM returns the parts of an image as CycloneDX JSON: its programs, and, by the build
// information in them, the modules and the version of Go that each of them was linked from. It
// fails if the licence of a module is not known.
func SBOM(image Image) ([]byte, error) {
	licences, err := Licences()
	if err != nil {
		return nil, err
	}
	b := &builder{version: image.Version, licences: licences, modules: make(map[string]component)}
	root := component{Type: "container", Ref: image.Name + "-image", Name: image.Name, Version: image.Version}
	contains := dependency{Ref: root.Ref}
	for _, path := range image.Programs {
		if err := b.program(path); err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
	}
	for _, file := range image.Files {
		if err := b.file(file); err != nil {
			return nil, err
		}
	}
	for _, c := range b.parts {
		contains.DependsOn = append(contains.DependsOn, c.Ref)
	}
	all := b.parts
	for _, ref := range sortedKeys(b.modules) {
		all = append(all, b.modules[ref])
		b.links = append(b.links, dependency{Ref: ref, DependsOn: []string{}})
	}
	root.Licences = expression(summary(all)...)
	return encode(bom{
		Schema: "http://cyclonedx.org/schema/bom-1.6.schema.json", BOMFormat: "CycloneDX", SpecVersion: "1.6", Version: 1,
		Metadata: metadata{Component: root}, Components: all,
		Dependencies: append([]dependency{contains}, b.links...),
	})
}

// builder collects the parts of an image.
type builder struct {
	version  string
	licences map[string]string
	parts    []component          // programs and files
	modules  map[string]component // by reference: programs share modules
	links    []dependency
}

// program adds a binary and its modules.
func (b *builder) program(path string) error {
	info, err := buildinfo.ReadFile(path)
	if err != nil {
		return err
	}
	sum, err := digestOf(path)
	if err != nil {
		return err
	}
	c := component{
		Type: "application", Ref: filepath.Base(path), Name: filepath.Base(path), Version: b.version,
		Hashes: sum, Licences: expression(own),
	}
	for _, s := range info.Settings {
		c.Properties = append(c.Properties, property{Name: "go:build:" + s.Key, Value: s.Value})
	}
	link := dependency{Ref: c.Ref}
	modules := append([]*debug.Module{{Path: Standard, Version: info.GoVersion}}, info.Deps...)
	for _, m := range modules {
		linked, err := b.module(m, info.Main.Path)
		if err != nil {
			return err
		}
		b.modules[linked.Ref] = linked
		link.DependsOn = append(link.DependsOn, linked.Ref)
	}
	slices.Sort(link.DependsOn)
	b.parts, b.links = append(b.parts, c), append(b.links, link)
	return nil
}

// module describes a module. The modules of this repository have its version and its licence.
func (b *builder) module(m *debug.Module, repository string) (component, error) {
	if m.Replace != nil && m.Replace.Sum != "" { // replaced by another published module
		m = m.Replace
	}
	c := component{Type: "library", Name: m.Path, Version: m.Version, Licences: expression(b.licences[m.Path])}
	switch {
	case strings.HasPrefix(m.Path, repository+"/"):
		c.Version, c.Licences = b.version, expression(own)
	case b.licences[m.Path] == "":
		return component{}, unknown(m.Path)
	case m.Path == Standard:
		c.Version = strings.TrimPrefix(m.Version, "go")
	case m.Sum == "":
		return component{}, fmt.Errorf("the module %s has no checksum: the build replaced it by a folder", m.Path)
	default:
		sum, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(m.Sum, "h1:"))
		if err != nil {
			return component{}, fmt.Errorf("checksum of the module %s: %w", m.Path, err)
		}
		c.Hashes = []hash{{"SHA-256", hex.EncodeToString(sum)}}
	}
	c.PackageURL = "pkg:golang/" + c.Name + "@" + strings.ReplaceAll(c.Version, "+", "%2B")
	c.Ref = c.PackageURL
	return c, nil
}

func unknown(module string) error {
	return fmt.Errorf("the licence of the module %s is not known: read it, and add a line to internal/supply/licences.txt", module)
}

// file adds a file that no program was linked from.
func (b *builder) file(f File) error {
	sum, err := digestOf(f.Path)
	if err != nil {
		return err
	}
	b.parts = append(b.parts, component{Type: "file", Ref: f.Path, Name: f.Path, Hashes: sum, Licences: expression(f.Licence)})
	return nil
}

func digestOf(path string) ([]hash, error) {
	content, err := os.ReadFile(path) //nolint:gosec // a path of the caller's choice is the purpose.
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(content)
	return []hash{{"SHA-256", hex.EncodeToString(sum[:])}}, nil
}

// expression returns the conjunction of licences.
func expression(expressions ...string) []licence {
	return []licence{{strings.Join(expressions, " AND ")}}
}

// summary returns the different licences of all components.
func summary(all []component) []string {
	seen := make(map[string]bool)
	for _, c := range all {
		for id := range strings.SplitSeq(c.Licences[0].Expression, " AND ") {
			seen[id] = true
		}
	}
	return sortedKeys(seen)
}

func encode(v any) ([]byte, error) {
	var out bytes.Buffer
	e := json.NewEncoder(&out)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	if err := e.Encode(v); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}
