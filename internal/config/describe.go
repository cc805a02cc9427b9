package config

import (
	"fmt"
	"reflect"
	"strings"

	"github.com/kelseyhightower/envconfig"
)

// Describe returns the settings in force by variable name, for a service to log at its start.
// Secrets are redacted, and long texts are cut.
func Describe(spec any) map[string]string {
	shown := make(map[string]string)
	for _, s := range settings(spec) {
		shown[s.name] = s.described()
	}
	return shown
}

// Changed returns the entries of [Describe] that differ from their defaults.
func Changed(spec any) map[string]string {
	shown := make(map[string]string)
	for _, s := range settings(spec) {
		if !s.value.Equal(s.byDefault()) {
			shown[s.name] = s.described()
		}
	}
	return shown
}

func (s setting) described() string {
	const most = 100
	text := fmt.Sprint(s.value.Interface())
	if s.value.Kind() == reflect.String && text == s.value.String() && strings.Contains(text, "://") {
		text = Hidden // a URL may contain a secret, and this text was not parsed
	}
	if len(text) > most {
		text = text[:most] + "…"
	}
	return text
}

// byDefault returns the value of a setting whose variable is not set.
func (s setting) byDefault() reflect.Value {
	field := s.field
	field.Tag = reflect.StructTag(fmt.Sprintf("envconfig:%q default:%q", "no variable has this name", s.field.Tag.Get("default")))
	one := reflect.New(reflect.StructOf([]reflect.StructField{field}))
	if err := envconfig.Process("", one.Interface()); err != nil {
		return reflect.Zero(s.field.Type) // a default that is invalid for its type; Load reports it
	}
	return one.Elem().Field(0)
}
