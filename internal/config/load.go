package config

import (
	"os"
	"reflect"
	"strings"
	"time"

	"github.com/kelseyhightower/envconfig"
)

// Spec is a struct of settings. Validate checks the rules that the tags of a single field
// cannot express; it runs after all fields were read, even if some were invalid.
type Spec interface {
	Validate(faults *Faults)
}

// Load fills spec, a pointer to a struct, from the environment. The error is an [*Error] with
// every fault; spec is then only partly filled.
func Load(spec Spec) error {
	var faults Faults
	for _, s := range settings(spec) {
		s.load(&faults)
	}
	spec.Validate(&faults)
	return faults.Err()
}

// setting is one field of a spec, bound to its variable.
type setting struct {
	name  string
	value reflect.Value
	field reflect.StructField
}

// settings lists the fields of the struct that spec points to, including the fields of nested
// structs. Other fields without a variable are left out.
func settings(spec any) []setting {
	var list []setting
	v := reflect.Indirect(reflect.ValueOf(spec))
	for i := range v.NumField() {
		f := v.Type().Field(i)
		switch name := f.Tag.Get("envconfig"); {
		case name != "":
			list = append(list, setting{name: name, value: v.Field(i), field: f})
		case f.IsExported() && f.Type.Kind() == reflect.Struct:
			list = append(list, settings(v.Field(i).Addr().Interface())...)
		}
	}
	return list
}

func (s setting) load(faults *Faults) {
	if raw, set := os.LookupEnv(s.name); set && strings.TrimSpace(raw) == "" && s.field.Tag.Get("empty") != "ok" {
		faults.Addf(s.name, "is empty; unset it for the default or give it a value")
		return
	}
	// envconfig stops at the first invalid field of a struct, so each field gets a separate
	// struct.
	one := reflect.New(reflect.StructOf([]reflect.StructField{s.field}))
	if err := envconfig.Process("", one.Interface()); err != nil {
		faults.Addf(s.name, "%s is not %s", s.shown(), s.kind())
		return
	}
	value := one.Elem().Field(0)
	if value.Kind() == reflect.String && s.field.Tag.Get("url") != "ok" && strings.Contains(value.String(), "://") {
		faults.Addf(s.name, "is a URL, which belongs into another variable")
		return
	}
	s.value.Set(value)
	s.check(faults)
}

// shown returns the variable's value in a form that is safe for a fault.
func (s setting) shown() string {
	raw, set := os.LookupEnv(s.name)
	if !set {
		raw = s.field.Tag.Get("default")
	}
	switch s.value.Kind() {
	case reflect.Bool:
		return QuoteWord(raw, "true", "false", "yes", "no", "on", "off")
	case reflect.String:
		return QuoteWord(raw, strings.Fields(s.field.Tag.Get("oneof"))...)
	default:
		return QuoteNumber(raw)
	}
}

// kind describes the type of the field in words.
func (s setting) kind() string {
	switch {
	case s.field.Type == reflect.TypeFor[time.Duration]():
		return "a duration such as 500ms, 5s or 2m"
	case s.value.CanInt():
		return "a whole number"
	case s.value.Kind() == reflect.Bool:
		return "true or false"
	default:
		return "a " + s.field.Type.String()
	}
}
