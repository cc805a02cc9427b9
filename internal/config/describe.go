package config

import "fmt"

// Describe returns the settings in force by variable name, for a service to log
// when it starts: secrets are redacted, long texts cut.
func Describe(spec any) map[string]string {
	const most = 100
	shown := make(map[string]string)
	for _, s := range settings(spec) {
		text := fmt.Sprint(s.value.Interface())
		if len(text) > most {
			text = text[:most] + "…"
		}
		shown[s.name] = text
	}
	return shown
}
