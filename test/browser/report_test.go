//go:build integration

package browser

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/page"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"

	"rabbitmq-rpc/pkg/amqpx"
	"rabbitmq-rpc/test/internal/rig"
)

// evil is a body that must not become active content of the page.
const evil = `<script>document.title = "taken over"</script><img src=x onerror=alert(1)>`

// figures is the number of plots for a run with responses.
const figures = 5

// reported runs rpc-client against a correct server, with a lost connection in the middle, and
// returns the folder of the reports.
func reported(t *testing.T) string {
	t.Helper()
	r := rig.New(t)
	r.Serve(rig.Methods{"b": func(ctx context.Context, req *amqpx.Request) ([]byte, error) {
		spread := time.Duration(req.CorrelationID[0]%16) * 100 * time.Microsecond
		select {
		case <-time.After(spread):
			return []byte(req.Method), nil
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}})
	proxy, dir := r.Proxy(), t.TempDir()
	client := rig.Run(t, []string{
		"AMQP_URL=" + proxy.URL(), "RPC_QUEUE=" + r.Queue.Name, "HTTP_ADDR=127.0.0.1:0", "LOG_FORMAT=json", "RPC_BODY=" + evil,
		"RPC_RATE=300", "RPC_DURATION=12s", "RPC_REPORT_DIR=" + dir,
	}, rig.Build(t, "rpc-client"))
	client.Says(`"progress"`) // after five seconds
	proxy.Refuse(true)
	proxy.Cut()
	client.Says("connection lost, reconnecting")
	proxy.Refuse(false)
	if err := client.Wait(); err != nil {
		t.Fatalf("rpc-client ended with %v", err)
	}
	return dir
}

// noise collects a page's forbidden actions.
type noise struct {
	mu   sync.Mutex
	said []string
}

func (n *noise) note(text string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.said = append(n.said, text)
}

// listen records console output and every request except the request for the page.
func (n *noise) listen(ctx context.Context, t *testing.T, address string) {
	t.Helper()
	err := chromedp.Listen(ctx, func(ev any) {
		switch ev := ev.(type) {
		case *log.EventEntryAdded:
			n.note("log: " + ev.Entry.Text)
		case *runtime.EventConsoleAPICalled:
			n.note("console: " + string(ev.Type))
		case *runtime.EventExceptionThrown:
			n.note("exception: " + ev.ExceptionDetails.Text)
		case *network.EventRequestWillBeSent:
			if ev.Request.URL != address {
				n.note("request: " + ev.Request.URL)
			}
		}
	})
	if err == nil {
		_, err = chromedp.Call(ctx, log.Enable, cdp.Empty{})
	}
	if err == nil {
		_, err = chromedp.Call(ctx, network.Enable, network.EnableParams{})
	}
	if err != nil {
		t.Fatal(err)
	}
}

// viewer inspects a page.
type viewer struct {
	t   *testing.T
	ctx context.Context //nolint:containedctx // of the tab, which is what it stands for.
}

// evaluate returns the value of an expression in the page.
func evaluate[T any](v viewer, expression string) T {
	v.t.Helper()
	got, err := chromedp.Run(v.ctx, chromedp.Evaluate[T](expression))
	if err != nil {
		v.t.Fatalf("%s: %v", expression, err)
	}
	return got
}

// look sets the width, the colour scheme and the medium of the page, and takes a picture.
func (v viewer) look(name string, width int64, scheme, medium string) {
	v.t.Helper()
	_, err := chromedp.Call(v.ctx, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{
		Media: medium, Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}},
	})
	if err == nil {
		err = chromedp.Do(v.ctx, chromedp.EmulateViewport(width, 900))
	}
	if err != nil {
		v.t.Fatal(err)
	}
	const lossless = 100
	png, err := chromedp.Run(v.ctx, chromedp.FullScreenshot(lossless))
	if err != nil {
		v.t.Fatal(err)
	}
	if dir := os.Getenv(envArtifacts); dir != "" {
		if err := os.WriteFile(filepath.Join(dir, name+".png"), png, 0o644); err != nil {
			v.t.Error(err)
		}
	}
	if wide := evaluate[int64](v, `document.documentElement.scrollWidth`); wide > width {
		v.t.Errorf("%s: the page is %d wide, the window %d", name, wide, width)
	}
	v.plots(name)
}

// plots checks that each figure shows one drawing, and that all its labels are inside and
// large enough to read.
func (v viewer) plots(name string) {
	v.t.Helper()
	type label struct {
		Text                     string
		Left, Right, Top, Bottom float64 // how far inside the drawing
		Height                   float64
	}
	type plot struct {
		Shown         int
		Width, Height float64
		Labels        []label
	}
	shown := evaluate[[]plot](v, `[...document.querySelectorAll("figure")].map(f => {
		const shown = [...f.querySelectorAll("svg")].filter(s => s.getBoundingClientRect().width > 0);
		const box = shown[0].getBoundingClientRect();
		return {Shown: shown.length, Width: box.width, Height: box.height, Labels: [...shown[0].querySelectorAll("text")].map(t => {
			const b = t.getBoundingClientRect();
			return {Text: t.textContent, Left: b.left - box.left, Right: box.right - b.right, Top: b.top - box.top, Bottom: box.bottom - b.bottom, Height: b.height};
		})};
	})`)
	if len(shown) != figures {
		v.t.Errorf("%s: %d figures, want %d", name, len(shown), figures)
	}
	for i, p := range shown {
		if p.Shown != 1 || p.Width < 300 || p.Height < 100 || len(p.Labels) < 6 {
			v.t.Errorf("%s: figure %d shows %d drawings, the first %v × %v with %d labels", name, i, p.Shown, p.Width, p.Height, len(p.Labels))
		}
		for _, l := range p.Labels {
			const slack, smallest = -1.5, 9
			if min(l.Left, l.Right, l.Top, l.Bottom) < slack || l.Height < smallest {
				v.t.Errorf("%s: figure %d: the label %+v", name, i, l)
			}
		}
	}
}

// value returns a value of report.json by its path. Names may contain dots.
func value(document any, path string) any {
	if path == "" {
		return document
	}
	object, _ := document.(map[string]any)
	for name, inner := range object {
		if path == name {
			return inner
		}
		if rest, ok := strings.CutPrefix(path, name+"."); ok {
			if found := value(inner, rest); found != nil {
				return found
			}
		}
	}
	return nil
}

// equal compares the page with report.json.
func (v viewer) equal(dir string) {
	v.t.Helper()
	content, err := os.ReadFile(filepath.Join(dir, "report.json"))
	if err != nil {
		v.t.Fatal(err)
	}
	var document map[string]any
	if err := json.Unmarshal(content, &document); err != nil {
		v.t.Fatal(err)
	}
	if document["ok"] != document["calls"] || document["reconnects"] != 1.0 || document["corrected"] != true {
		v.t.Errorf("the run was not the one expected: %s", content)
	}
	fields := evaluate[[][3]string](v, `[...document.querySelectorAll("[data-field]")].map(e => [e.dataset.field, e.value ?? e.dataset.value ?? e.dateTime ?? "", e.innerText.trim()])`)
	if len(fields) < 60 {
		v.t.Errorf("the page has only %d figures", len(fields))
	}
	for _, f := range fields {
		field, raw, text := f[0], f[1], f[2]
		switch want := value(document, field).(type) {
		case float64:
			got, err := strconv.ParseFloat(raw, 64)
			shown, err2 := strconv.ParseFloat(strings.ReplaceAll(text, ",", ""), 64)
			if err != nil || err2 != nil || got != want || shown-want > 0.05 || want-shown > 0.05 {
				v.t.Errorf("%s is %q, shown as %q, in report.json %v", field, raw, text, want)
			}
		case map[string]any: // the errors, of which there are none
			if raw != "0" || len(want) != 0 {
				v.t.Errorf("%s is %q, in report.json %v", field, raw, want)
			}
		default:
			if said := fmt.Sprint(want); said != raw && said != text {
				v.t.Errorf("%s is %q, shown as %q, in report.json %q", field, raw, text, said)
			}
		}
	}
}

func TestReport(t *testing.T) {
	t.Parallel()
	dir := reported(t)
	v := viewer{t, tab(t)}
	address := "file://" + filepath.Join(dir, "report.html")
	var heard noise
	heard.listen(v.ctx, t, address)
	if dir := os.Getenv(envArtifacts); dir != "" {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := chromedp.Do(v.ctx, chromedp.Navigate(address), chromedp.WaitVisible(`#verdict`)); err != nil {
		t.Fatal(err)
	}
	v.equal(dir)
	if title := evaluate[string](v, `document.title`); title != "Passed: every call got the expected response – rpc-client" {
		t.Errorf("the title is %q", title)
	}
	if !strings.Contains(evaluate[string](v, `document.body.innerText`), evil) {
		t.Error("the body of the calls is not shown as it is")
	}
	background := `getComputedStyle(document.body).backgroundColor`
	v.look("report-light", 1400, "light", "screen")
	light := evaluate[string](v, background)
	v.look("report-dark", 1400, "dark", "screen")
	dark := evaluate[string](v, background)
	v.look("report-phone", 360, "light", "screen")
	v.look("report-phone-dark", 360, "dark", "screen")
	v.look("report-print", 720, "dark", "print")
	if light != "rgb(255, 255, 255)" || dark == light || evaluate[string](v, background) != light {
		t.Errorf("the background is %s, in the dark %s, in print %s", light, dark, evaluate[string](v, background))
	}
	pdf, err := chromedp.Call(v.ctx, page.PrintToPDF, page.PrintToPDFParams{})
	if err != nil || !bytes.HasPrefix(pdf.Data, []byte("%PDF-")) {
		t.Errorf("it cannot be printed: %v", err)
	}
	heard.mu.Lock()
	defer heard.mu.Unlock()
	if len(heard.said) > 0 {
		t.Errorf("the page is not quiet: %q", heard.said)
	}
}
