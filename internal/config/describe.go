package config

import "fmt"

// Describe returns the settings in force by variable name, secrets redacted, for
// a service to log when it starts.
func Describe(spec any) map[string]string {
	shown := make(map[string]string)
	for _, s := range settings(spec) {
		shown[s.name] = fmt.Sprint(s.value.Interface())
	}
	return shown
}
