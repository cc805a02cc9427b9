package api

import (
	"fmt"
	"go/types"
	"regexp"
	"slices"
	"strings"
)

// internal matches the path of a package that users cannot import.
var internal = regexp.MustCompile(`/internal\b`)

// describe returns the exported API of a package: a line for each constant, variable, function,
// type, field and method, sorted.
func describe(pkg *types.Package) []string {
	d := &description{pkg: pkg}
	scope := pkg.Scope()
	for _, name := range scope.Names() {
		if alias, ok := scope.Lookup(name).(*types.TypeName); ok && alias.Exported() && alias.IsAlias() && d.local(alias) {
			d.aliases = append(d.aliases, alias)
		}
	}
	for _, name := range scope.Names() {
		if object := scope.Lookup(name); object.Exported() {
			d.add(object)
		}
	}
	slices.Sort(d.lines)
	return d.lines
}

// description collects the lines of a package.
type description struct {
	pkg     *types.Package
	aliases []*types.TypeName // for types of internal packages
	lines   []string
}

func (d *description) line(format string, args ...any) {
	d.lines = append(d.lines, fmt.Sprintf(format, args...)+"\n")
}

// local reports whether users see the type as a type of the package: the package defines the
// type, or has an alias for a type of an internal package.
func (d *description) local(name *types.TypeName) bool {
	named, ok := types.Unalias(name.Type()).(*types.Named)
	return !name.IsAlias() || ok && named.Obj().Pkg() != nil && internal.MatchString(named.Obj().Pkg().Path())
}

// text returns a type as users write it in the package. Other packages have their whole path.
func (d *description) text(t types.Type) string {
	whole := func(p *types.Package) string {
		if p == d.pkg {
			return ""
		}
		return p.Path()
	}
	text := types.TypeString(t, whole)
	for _, alias := range d.aliases {
		target := types.TypeString(types.Unalias(alias.Type()), whole)
		text = regexp.MustCompile(regexp.QuoteMeta(target)+`\b`).ReplaceAllString(text, alias.Name())
	}
	return text
}

func (d *description) add(object types.Object) {
	name := object.Name()
	switch object := object.(type) {
	case *types.Const:
		d.line("const %s %s = %s", name, d.text(object.Type()), object.Val().ExactString())
	case *types.Var:
		d.line("var %s %s", name, d.text(object.Type()))
	case *types.Func:
		d.line("func %s%s", name, d.signature(object))
	case *types.TypeName:
		if d.local(object) {
			d.addType(name, types.Unalias(object.Type()))
			return
		}
		d.line("type %s = %s", name, d.text(types.Unalias(object.Type())))
	}
}

func (d *description) addType(name string, t types.Type) {
	methods := types.NewMethodSet(types.NewPointer(t))
	switch under := t.Underlying().(type) {
	case *types.Struct:
		d.line("type %s struct", name)
		for field := range under.Fields() {
			if field.Exported() {
				d.line("field %s.%s %s", name, field.Name(), d.text(field.Type()))
			}
		}
	case *types.Interface:
		methods = types.NewMethodSet(t)
		kind := "interface"
		for method := range under.Methods() {
			if !method.Exported() {
				kind = "interface with unexported methods"
			}
		}
		d.line("type %s %s", name, kind)
	default:
		d.line("type %s %s", name, d.text(under))
	}
	byValue := types.NewMethodSet(t)
	for method := range methods.Methods() {
		function, ok := method.Obj().(*types.Func)
		if !ok || !function.Exported() {
			continue
		}
		receiver := name
		if byValue.Lookup(function.Pkg(), function.Name()) == nil {
			receiver = "*" + name
		}
		d.line("method (%s) %s%s", receiver, function.Name(), d.signature(function))
	}
}

// signature returns parameters and results of a function.
func (d *description) signature(f *types.Func) string {
	return strings.TrimPrefix(d.text(f.Type()), "func")
}
