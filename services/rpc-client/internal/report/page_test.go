package report

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"html"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// render returns the page of a report.
func render(t *testing.T, r *Report) string {
	t.Helper()
	content, err := r.HTML()
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}

// at returns a value of a JSON document by its path, such as latency_ms.p50.
func at(document any, path string) (any, bool) {
	if path == "" {
		return document, true
	}
	object, ok := document.(map[string]any)
	if !ok {
		return nil, false
	}
	for name, value := range object { // names may contain dots
		if rest, found := strings.CutPrefix(path, name); found && (rest == "" || rest[0] == '.') {
			if got, ok := at(value, strings.TrimPrefix(rest, ".")); ok {
				return got, true
			}
		}
	}
	return nil, false
}

func TestPageEqualsJSON(t *testing.T) {
	t.Parallel()
	runs := odd()
	runs["sample"] = sample()
	for name, r := range runs {
		page := render(t, r)
		content, err := r.JSON()
		if err != nil {
			t.Fatal(err)
		}
		var document any
		if err := json.Unmarshal(content, &document); err != nil {
			t.Fatal(err)
		}
		shown := regexp.MustCompile(`<data value="([^"]*)" data-field="([^"]*)">([^<]*)</data>`).FindAllStringSubmatch(page, -1)
		if len(shown) < 10 || name == "sample" && len(shown) < 35 {
			t.Errorf("%s: only %d figures", name, len(shown))
		}
		for _, figure := range shown {
			field := html.UnescapeString(figure[2])
			want, ok := at(document, field)
			if field == "errors" {
				want = 0.0
			}
			value, err := strconv.ParseFloat(figure[1], 64)
			if !ok || err != nil || want != value {
				t.Errorf("%s: %s is %s, in report.json %v", name, field, figure[1], want)
			}
			text, err := strconv.ParseFloat(strings.ReplaceAll(figure[3], ",", ""), 64)
			if err != nil || text < value-0.05 || text > value+0.05 {
				t.Errorf("%s: %s is shown as %s, and is %v", name, field, figure[3], value)
			}
		}
		for _, cell := range regexp.MustCompile(`<t(?:d|ime)[^>]* data-field="([^"]*)">([^<]*)<`).FindAllStringSubmatch(page, -1) {
			want, ok := at(document, html.UnescapeString(cell[1]))
			if strings.HasSuffix(cell[1], "ed") { // started, finished
				continue
			}
			if !ok || want != html.UnescapeString(cell[2]) {
				t.Errorf("%s: %s is %q, in report.json %q", name, cell[1], cell[2], want)
			}
		}
	}
}

func TestPageOfOddRuns(t *testing.T) {
	t.Parallel()
	for name, r := range odd() {
		page := render(t, r)
		for _, bad := range []string{"NaN", "Inf", "<no value>", "ZgotmplZ", "%!"} {
			if strings.Contains(page, bad) {
				t.Errorf("%s: the page has %s", name, bad)
			}
		}
		for _, section := range []string{"Key figures", "Over time", "Latency", "Inside the server", "Settings and versions"} {
			if !strings.Contains(page, ">"+section+"</h2>") {
				t.Errorf("%s: no section %s", name, section)
			}
		}
		if len(page) > 250_000 {
			t.Errorf("%s: %d bytes", name, len(page))
		}
		// Each figure is present in every size or replaced by text.
		figures := strings.Count(page, "<figure>")
		if drawings := strings.Count(page, "<svg"); drawings != figures*len(sizes()) {
			t.Errorf("%s: %d drawings of %d figures", name, drawings, figures)
		}
		if figures < 5 && !strings.Contains(page, `class="empty"`) {
			t.Errorf("%s: %d figures and not a word about the others", name, figures)
		}
	}
}

// The page says where every event is.
func TestPageOfManyEvents(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		kept, omitted, rows int
		want                string
	}{
		{0, 0, 0, "The connection to broker:5672 did not change during the run."},
		{1, 0, 1, ""},
		{20, 0, 20, ""},
		{21, 0, 20, "The first 20 of 21; the others are in report.json."},
		{200, 0, 20, "The first 20 of 200; the others are in report.json."},
		{200, 1, 20, "The first 20 of 201; the next 180 are in report.json, of the last 1 only the number is known."},
		{200, 12345, 20, "The first 20 of 12,545; the next 180 are in report.json, of the last 12,345 only the number is known."},
		{20, 5, 20, "The first 20 of 25; of the others only the number is known."}, // the other events were before the run
		{0, 5, 0, "Of 5 changes of the connection only the number is known."},
	} {
		r := sample()
		r.Events, r.EventsOmitted = make([]Event, c.kept), c.omitted
		_, section, _ := strings.Cut(render(t, r), ">Over time</h2>")
		section, _, _ = strings.Cut(section, "</section>")
		if rows := strings.Count(section, "<tr><td"); rows != c.rows {
			t.Errorf("%d events and %d omitted: %d rows, want %d", c.kept, c.omitted, rows, c.rows)
		}
		var got string
		if note := regexp.MustCompile(`<p class="note">([^<]*)</p>`).FindAllStringSubmatch(section, -1); len(note) == 1 {
			got = note[0][1]
		} else if len(note) > 1 {
			t.Errorf("%d events and %d omitted: %d notes", c.kept, c.omitted, len(note))
		}
		if got != c.want {
			t.Errorf("%d events and %d omitted: the page says %q, want %q", c.kept, c.omitted, got, c.want)
		}
	}
}

// External text is escaped.
func TestPageEscapes(t *testing.T) {
	t.Parallel()
	const evil = `<script>alert("x")</script><img src=x onerror=alert(1)>'"&</style></title>`
	r := sample()
	r.Settings = map[string]string{"RPC_METHOD": evil, "RPC_QUEUE": evil, "RPC_BODY": evil, evil: evil}
	r.Versions = map[string]string{"go": evil, evil: evil}
	r.Broker = evil
	r.Errors = map[string]int64{evil: 65}
	for i := range r.Events {
		r.Events[i].Text = evil
	}
	r.Events = append(r.Events, Event{At: 1, Kind: EventKind(evil), Text: evil})
	page := render(t, r)
	for _, bad := range []string{"<script", "<img", "onerror=alert(1)>", `alert("x")`} {
		if strings.Contains(page, bad) {
			t.Errorf("the page has %s", bad)
		}
	}
	if n := strings.Count(page, "&lt;script&gt;"); n < 10 {
		t.Errorf("the texts are shown %d times", n)
	}
	for tag, want := range map[string]int{"</style>": 1, "</title>": 1 + len(sizes())*5, "<style>": 1} {
		if got := strings.Count(page, tag); got != want {
			t.Errorf("%s is there %d times, want %d", tag, got, want)
		}
	}
}

// The page needs no other resource, and its policy allows none.
func TestPageStandsAlone(t *testing.T) {
	t.Parallel()
	page := render(t, sample())
	for _, bad := range []string{" src=", " href=", "url(", "@import", " style=", "<script", "<link", "http://", "https://"} {
		if strings.Contains(page, bad) {
			t.Errorf("the page has %s", bad)
		}
	}
	style := regexp.MustCompile(`(?s)<style>(.*)</style>`).FindStringSubmatch(page)
	if style == nil {
		t.Fatal("no style")
	}
	sum := sha256.Sum256([]byte(style[1]))
	policy := html.UnescapeString(regexp.MustCompile(`Content-Security-Policy" content="([^"]*)"`).FindStringSubmatch(page)[1])
	want := fmt.Sprintf("default-src 'none'; style-src 'sha256-%s'; base-uri 'none'; form-action 'none'", base64.StdEncoding.EncodeToString(sum[:]))
	if policy != want {
		t.Errorf("the policy is %s, want %s", policy, want)
	}
	// Every class of a drawing has a rule.
	for _, classes := range regexp.MustCompile(`<(?:path|text)[^>]* class="([^"]*)"`).FindAllStringSubmatch(page, -1) {
		for class := range strings.FieldsSeq(classes[1]) {
			if !strings.Contains(pageCSS, "."+class+" ") {
				t.Errorf("the style sheet has no rule for %s", class)
			}
		}
	}
}

func TestPageIsAccessible(t *testing.T) {
	t.Parallel()
	page := render(t, sample())
	for _, cell := range regexp.MustCompile(`<th[^e>]*>`).FindAllString(page, -1) {
		if !strings.Contains(cell, "scope=") {
			t.Errorf("%s has no scope", cell)
		}
	}
	for _, svg := range regexp.MustCompile(`<svg[^>]*>`).FindAllString(page, -1) {
		if !strings.Contains(svg, `role="img"`) || !strings.Contains(svg, "aria-labelledby=") {
			t.Errorf("%s has no words", svg)
		}
	}
	seen := make(map[string]bool)
	for _, id := range regexp.MustCompile(` id="([^"]*)"`).FindAllStringSubmatch(page, -1) {
		if seen[id[1]] {
			t.Errorf("the id %s is there twice", id[1])
		}
		seen[id[1]] = true
	}
	for _, label := range regexp.MustCompile(`aria-labelledby="([^"]*)"`).FindAllStringSubmatch(page, -1) {
		for id := range strings.FieldsSeq(label[1]) {
			if !seen[id] {
				t.Errorf("nothing has the id %s", id)
			}
		}
	}
	for _, want := range []string{`<html lang="en">`, `name="viewport"`, "<main>", "<h1"} {
		if !strings.Contains(page, want) {
			t.Errorf("no %s", want)
		}
	}
}
