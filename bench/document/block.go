// Package document replaces blocks of Markdown documents that programs of this module write.
package document

import (
	"fmt"
	"strings"
)

// Block marks a text as a block, so that Replace finds it.
func Block(name, text string) string {
	return fmt.Sprintf("<!-- begin: %s; written by bench -->\n%s\n<!-- end: %s -->\n", name, text, name)
}

// Replace replaces the text of a block in a document. ok is false if the document has no such
// block.
func Replace(document, name, text string) (replaced string, ok bool) {
	begin, end, _ := strings.Cut(Block(name, "\x00"), "\x00")
	before, rest, found := strings.Cut(document, begin)
	_, after, ended := strings.Cut(rest, end)
	if !found || !ended {
		return document, false
	}
	return before + Block(name, text) + after, true
}
