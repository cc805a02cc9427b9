package config

import (
	"os"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"
)

// check applies the bounds in the field's tags.
func (s setting) check(faults *Faults) {
	switch {
	case s.field.Type == reflect.TypeFor[time.Duration]():
		s.checkDuration(faults)
	case s.value.CanInt():
		s.checkInt(faults)
	case s.value.Kind() == reflect.String:
		s.checkText(faults)
	}
}

func (s setting) checkDuration(faults *Faults) {
	d := time.Duration(s.value.Int())
	if least, err := time.ParseDuration(s.field.Tag.Get("min")); err == nil && d < least {
		faults.Addf(s.name, "%v is less than %v", d, least)
	}
	if most, err := time.ParseDuration(s.field.Tag.Get("max")); err == nil && d > most {
		faults.Addf(s.name, "%v is more than %v", d, most)
	}
}

func (s setting) checkInt(faults *Faults) {
	n := s.value.Int()
	// envconfig reads Go's literals: 010 would be 8, and 0x10 would be 16.
	if raw, set := os.LookupEnv(s.name); set {
		if decimal, err := strconv.ParseInt(raw, 10, 64); err != nil || decimal != n {
			faults.Addf(s.name, "%s is not %s", s.shown(), s.kind())
			return
		}
	}
	if least, err := strconv.ParseInt(s.field.Tag.Get("min"), 10, 64); err == nil && n < least {
		faults.Addf(s.name, "%d is less than %d", n, least)
	}
	if most, err := strconv.ParseInt(s.field.Tag.Get("max"), 10, 64); err == nil && n > most {
		faults.Addf(s.name, "%d is more than %d", n, most)
	}
}

func (s setting) checkText(faults *Faults) {
	text := s.value.String()
	if words := strings.Fields(s.field.Tag.Get("oneof")); len(words) > 0 && !slices.Contains(words, text) {
		faults.Addf(s.name, "%s is not one of: %s", s.shown(), strings.Join(words, ", "))
	}
	if most, err := strconv.Atoi(s.field.Tag.Get("maxlen")); err == nil && len(text) > most {
		faults.Addf(s.name, "has %d bytes, more than %d", len(text), most)
	}
}
