package supply

import (
	_ "embed"
	"fmt"
	"strings"
)

// The licences of the modules that the programs link, read by a person: a module without a line
// ends the build of an image. A test compares the lines with the licence files of the modules.
//
//go:embed licences.txt
var licenceLines string

// Licences returns the SPDX expression of each known module, by the module's path. The standard
// library of Go has the path [Standard].
func Licences() (map[string]string, error) {
	known := make(map[string]string)
	for line := range strings.Lines(licenceLines) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		module, expression, found := strings.Cut(line, " ")
		if !found || known[module] != "" {
			return nil, fmt.Errorf("licences.txt: want one line MODULE EXPRESSION for each module, not %q", line)
		}
		known[module] = expression
	}
	return known, nil
}
