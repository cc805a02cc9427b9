package report

import (
	"bytes"
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"fmt"
	"html/template"
	"maps"
	"slices"
	"strconv"
	"strings"

	"rabbitmq-rpc/internal/chart"
)

//go:embed page.html
var pageHTML string

//go:embed page.css
var pageCSS string

// page is the data of the template.
type page struct {
	*Report

	Verdict verdict
	Terms   []term
	Figures map[string]*figure
	// Listed holds the events on the page; Unlisted says where further events are.
	Listed   []Event
	Unlisted string
	CSS      template.CSS
	// Policy allows the page's own style sheet and no other resource.
	Policy string
}

// figure holds the drawings of a plot, one per size.
type figure struct{ Drawings []template.HTML }

// pair is a row of a table.
type pair struct{ Name, Value string }

// datum is a value of report.json together with its text on the page.
type datum struct{ Field, Value, Text string }

// HTML returns the report for people: a single self-contained file.
func (r *Report) HTML() ([]byte, error) {
	sum := sha256.Sum256([]byte(pageCSS))
	policy := "default-src 'none'; style-src 'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) +
		"'; base-uri 'none'; form-action 'none'"
	t, err := template.New("page").Funcs(template.FuncMap{
		"count": count, "number": number, "set": set, "unset": unset, "clock": clock, "iso": iso,
	}).Parse(pageHTML)
	if err != nil {
		return nil, fmt.Errorf("parse the page: %w", err)
	}
	var out bytes.Buffer
	err = t.Execute(&out, page{
		Report: r, Verdict: r.verdict(), Terms: r.terms(), Figures: r.figures(),
		Listed: r.Events[:min(len(r.Events), mostListed)], Unlisted: r.unlisted(),
		CSS: template.CSS(pageCSS), Policy: policy, //nolint:gosec // a file of this package.
	})
	return out.Bytes(), err
}

// sizes returns the layouts of each figure; the style sheet shows one layout.
func sizes() []chart.Size {
	return []chart.Size{
		{Name: "wide", Width: 832, Height: 270, Font: 12.5, Gutter: 36, XTicks: 9, YTicks: 5},
		{Name: "narrow", Width: 380, Height: 270, Font: 13, Gutter: 36, XTicks: 5, YTicks: 5},
	}
}

// figures draws every figure that has data.
func (r *Report) figures() map[string]*figure {
	drawn := make(map[string]*figure)
	var wanted []*chart.Figure
	if r.Calls > r.Lost && len(r.Timeline) > 0 {
		wanted = append(wanted, r.throughput())
	}
	if r.OK > 0 {
		wanted = append(wanted, r.latencyOverTime(), r.latencyCurve(), r.latencyHistogram())
	}
	if r.QueueWaitMS.Sampled > 0 {
		wanted = append(wanted, r.serverTimes())
	}
	for _, f := range wanted {
		all := new(figure)
		for _, size := range sizes() {
			all.Drawings = append(all.Drawings, f.SVG(size))
		}
		drawn[f.ID] = all
	}
	return drawn
}

// mostListed is the maximum number of events on the page.
const mostListed = 20

// unlisted says where the events are that the page does not show; it returns "" if the page
// shows all events.
func (r *Report) unlisted() string {
	listed := min(len(r.Events), mostListed)
	inJSON, omitted := len(r.Events)-listed, r.EventsOmitted
	first := fmt.Sprintf("The first %d of %s; ", listed, grouped(len(r.Events)+omitted))
	switch {
	case inJSON == 0 && omitted == 0:
		return ""
	case omitted == 0:
		return first + "the others are in report.json."
	case listed == 0:
		return fmt.Sprintf("Of %s changes of the connection only the number is known.", grouped(omitted))
	case inJSON == 0:
		return first + "of the others only the number is known."
	default:
		return first + fmt.Sprintf("the next %d are in report.json, of the last %s only the number is known.", inJSON, grouped(omitted))
	}
}

// count formats an integer.
func count(field string, n any) datum {
	text := fmt.Sprint(n)
	if whole, err := strconv.ParseUint(text, 10, 64); err == nil {
		return datum{field, text, grouped(whole)}
	}
	return datum{field, text, text}
}

// number formats a number with the given number of decimals.
func number(field string, v float64, digits int) datum {
	text := strconv.FormatFloat(v, 'f', digits, 64)
	whole, rest, _ := strings.Cut(text, ".")
	if n, err := strconv.ParseInt(whole, 10, 64); err == nil && n > 0 {
		whole = grouped(n)
	}
	if rest != "" {
		whole += "." + rest
	}
	return datum{field, strconv.FormatFloat(v, 'f', -1, 64), whole}
}

// set lists the names that have a value, in order.
func set(m map[string]string) []pair {
	list := make([]pair, 0, len(m))
	for _, name := range slices.Sorted(maps.Keys(m)) {
		if m[name] != "" {
			list = append(list, pair{name, m[name]})
		}
	}
	return list
}

// unset lists the names without a value, in order.
func unset(m map[string]string) []string {
	var list []string
	for _, name := range slices.Sorted(maps.Keys(m)) {
		if m[name] == "" {
			list = append(list, name)
		}
	}
	return list
}
