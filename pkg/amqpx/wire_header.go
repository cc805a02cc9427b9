package amqpx

import (
	"fmt"
	"maps"
	"math"
	"reflect"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

// encodeHeader returns application headers with values of the types that AMQP has, or an
// error that names the header and the type that cannot be sent. It returns h itself when
// there is nothing to change; containers are always copied.
func encodeHeader(h map[string]any) (map[string]any, error) {
	own := h
	copied := false
	for name, v := range h {
		value, changed, err := sentValue(v, 1)
		if err != nil {
			return nil, fmt.Errorf("header %q: %w", name, err)
		}
		if !changed {
			continue
		}
		if !copied {
			own, copied = maps.Clone(h), true
		}
		own[name] = value
	}
	return own, nil
}

// sentValue returns v as a value of a type that amqp091-go writes, and whether that
// differs from v.
func sentValue(v any, depth int) (value any, changed bool, err error) {
	if depth > maxHeaderDepth {
		return nil, false, fmt.Errorf("nested deeper than %d", maxHeaderDepth)
	}
	switch t := v.(type) {
	case nil, bool, string, []byte, int8, uint8, int16, uint16, int32, uint32, int64, float32, float64, amqp.Decimal, time.Time:
		return v, false, nil
	case int:
		if t == int(int32(t)) { //nolint:gosec // that it may not fit is what is checked.
			return v, false, nil
		}
		return int64(t), true, nil
	case time.Duration:
		return nil, false, fmt.Errorf("a time.Duration has no unit in a header: send its Milliseconds() or its String()")
	case map[string]any:
		value, err = sentTable(t, depth)
	case amqp.Table:
		value, err = sentTable(t, depth)
	case []any:
		value, err = sentArray(reflect.ValueOf(t), depth)
	default:
		value, err = reflectedValue(reflect.ValueOf(v), depth)
	}
	return value, true, err
}

// reflectedValue is sentValue of a type that is none of Go's own, such as
// []string, or a type whose underlying type is string.
func reflectedValue(v reflect.Value, depth int) (any, error) {
	switch v.Kind() {
	case reflect.Bool:
		return v.Bool(), nil
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		return v.Int(), nil
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		n := v.Uint()
		if n > math.MaxInt64 {
			return nil, fmt.Errorf("%v %d is more than the largest whole number, %d", v.Type(), n, int64(math.MaxInt64))
		}
		return int64(n), nil
	case reflect.Float32, reflect.Float64:
		return v.Float(), nil
	case reflect.String:
		return v.String(), nil
	case reflect.Slice, reflect.Array:
		if v.Kind() == reflect.Slice && v.Type().Elem().Kind() == reflect.Uint8 {
			return v.Bytes(), nil
		}
		return sentArray(v, depth)
	case reflect.Map:
		if v.Type().Key().Kind() != reflect.String {
			break
		}
		table := make(map[string]any, v.Len())
		for entries := v.MapRange(); entries.Next(); {
			table[entries.Key().String()] = entries.Value().Interface()
		}
		return sentTable(table, depth)
	default:
	}
	return nil, fmt.Errorf("a value of type %v cannot be sent", v.Type())
}

// sentTable returns a table with the values of m.
func sentTable(m map[string]any, depth int) (amqp.Table, error) {
	table := make(amqp.Table, len(m))
	for name, v := range m {
		value, _, err := sentValue(v, depth+1)
		if err != nil {
			return nil, fmt.Errorf("in %q: %w", name, err)
		}
		table[name] = value
	}
	return table, nil
}

// sentArray returns an array with the elements of a slice or an array.
func sentArray(v reflect.Value, depth int) ([]any, error) {
	array := make([]any, v.Len())
	for i := range array {
		value, _, err := sentValue(v.Index(i).Interface(), depth+1)
		if err != nil {
			return nil, fmt.Errorf("in element %d: %w", i, err)
		}
		array[i] = value
	}
	return array, nil
}

// receivedValue returns the value of a header as applications get it: a table as
// map[string]any, at any depth. What is a part of the message is not changed.
func receivedValue(v any) any {
	switch t := v.(type) {
	case amqp.Table:
		m := make(map[string]any, len(t))
		for name, e := range t {
			m[name] = receivedValue(e)
		}
		return m
	case []any:
		array := make([]any, len(t))
		for i, e := range t {
			array[i] = receivedValue(e)
		}
		return array
	default:
		return v
	}
}
