package chart

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"html/template"
	"io"
	"strings"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/text"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/vgsvg"
)

// The first letter of every text in the SVG is its alignment. The letters are from Unicode's
// private use area, so no label contains them.
const (
	anchorStart  = "\ue001"
	anchorMiddle = "\ue002"
	anchorEnd    = "\ue003"
)

// anchored leaves the alignment of texts to the browser, because only the browser knows the
// width of a text in the page's font.
type anchored struct{ text.Plain }

func handler() text.Handler { return anchored{text.Plain{Fonts: plot.DefaultTextHandler.Cache()}} }

// Draw implements text.Handler.
func (h anchored) Draw(c vg.Canvas, txt string, sty text.Style, pt vg.Point) {
	anchor := anchorStart
	switch sty.XAlign {
	case text.XCenter:
		anchor = anchorMiddle
	case text.XRight:
		anchor = anchorEnd
	case text.XLeft:
	}
	sty.XAlign = text.XLeft
	h.Plain.Draw(c, anchor+txt, sty, pt)
}

// rewrite converts a drawing for embedding in a page: no prolog, no size, classes instead of
// colours, the page's font, and no style attributes, which a strict content security policy
// forbids.
func rewrite(canvas *vgsvg.Canvas, f *Figure, s Size) (template.HTML, error) {
	var raw, out bytes.Buffer
	if _, err := canvas.WriteTo(&raw); err != nil {
		return "", err
	}
	fmt.Fprintf(&out, `<svg class="%s" viewBox="0 0 %g %g" role="img" aria-labelledby="%[4]s-%[1]s-t %[4]s-%[1]s-d">`,
		template.HTMLEscapeString(s.Name), s.Width, s.Height, template.HTMLEscapeString(f.ID))
	for part, words := range [...]string{f.Title, f.Desc} {
		tag := [...]string{"title", "desc"}[part]
		fmt.Fprintf(&out, `<%[1]s id="%[2]s-%[3]s-%.1[1]s">%[4]s</%[1]s>`,
			tag, template.HTMLEscapeString(f.ID), template.HTMLEscapeString(s.Name), template.HTMLEscapeString(words))
	}
	if err := copyShapes(&out, xml.NewDecoder(&raw)); err != nil {
		return "", err
	}
	out.WriteString("</svg>\n")
	return template.HTML(out.String()), nil //nolint:gosec // every text in it was escaped here.
}

// copyShapes copies the content of the root element.
func copyShapes(out *bytes.Buffer, in *xml.Decoder) error {
	for depth := 0; ; {
		token, err := in.Token()
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		}
		switch t := token.(type) {
		case xml.StartElement:
			if depth++; depth > 1 {
				err = open(out, t, in)
			}
		case xml.EndElement:
			if depth--; depth > 0 {
				fmt.Fprintf(out, "</%s>", t.Name.Local)
			}
		}
		if err != nil {
			return err
		}
	}
}

// open writes a start tag, and the characters of a text element.
func open(out *bytes.Buffer, t xml.StartElement, in *xml.Decoder) error {
	fmt.Fprintf(out, "<%s", t.Name.Local)
	for _, a := range t.Attr {
		if a.Name.Local == "style" {
			writeStyle(out, a.Value)
			continue
		}
		fmt.Fprintf(out, ` %s="%s"`, a.Name.Local, template.HTMLEscapeString(a.Value))
	}
	words := ""
	if t.Name.Local == "text" {
		next, err := in.Token()
		if err != nil {
			return err
		}
		if data, ok := next.(xml.CharData); ok {
			words = string(data)
		}
		switch {
		case strings.HasPrefix(words, anchorMiddle):
			out.WriteString(` text-anchor="middle"`)
		case strings.HasPrefix(words, anchorEnd):
			out.WriteString(` text-anchor="end"`)
		}
		words = strings.TrimLeft(words, anchorStart+anchorMiddle+anchorEnd)
	}
	out.WriteByte('>')
	template.HTMLEscape(out, []byte(words))
	return nil
}

// writeStyle writes declarations as classes and attributes.
func writeStyle(out *bytes.Buffer, declarations string) {
	var classes []string
	for declaration := range strings.SplitSeq(declarations, ";") {
		name, value, _ := strings.Cut(declaration, ":")
		switch name {
		case "fill", "stroke":
			if class, ok := inkOf(value); ok {
				classes = append(classes, name[:1]+"-"+class)
			} else {
				fmt.Fprintf(out, ` %s="%s"`, name, template.HTMLEscapeString(value))
			}
		case "stroke-width", "stroke-dasharray", "font-size":
			if value != "none" {
				fmt.Fprintf(out, ` %s="%s"`, name, template.HTMLEscapeString(value))
			}
		}
	}
	if len(classes) > 0 {
		fmt.Fprintf(out, ` class="%s"`, strings.Join(classes, " "))
	}
}
