//go:build integration

// Package browser uses RabbitMQ's management UI like a person: the tests log in and find the
// request queue with its consumers.
package browser

import (
	"context"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"

	"rabbitmq-rpc/pkg/amqpx"
	"rabbitmq-rpc/test/internal/rig"
)

const (
	// envChromium names a browser other than Debian's chromium.
	envChromium = "AMQPX_CHROMIUM"
	// envArtifacts names a folder for screenshots.
	envArtifacts = "AMQPX_TEST_ARTIFACTS"
	// patience bounds the whole test: the UI counts consumers every 5 s.
	patience = 90 * time.Second
)

func TestMain(m *testing.M) { rig.Main(m) }

// tab opens a browser, which ends with the test.
func tab(t *testing.T) context.Context {
	t.Helper()
	program := os.Getenv(envChromium)
	if program == "" {
		program = "/usr/bin/chromium"
	}
	if _, err := os.Stat(program); err != nil {
		t.Fatalf("no browser: %v. Install the package chromium, or name another by %s", err, envChromium)
	}
	// The browser outlives the test's context: the end of this context would kill the browser
	// while it still writes into its folder.
	bounded, end := context.WithTimeout(context.WithoutCancel(t.Context()), patience)
	browser, stop := chromedp.NewExecAllocator(bounded, append(
		chromedp.DefaultExecAllocatorOptions[:],
		chromedp.ExecPath(program),
		chromedp.NoSandbox,
		chromedp.DisableGPU,
		chromedp.Flag("disable-background-networking", true),
		chromedp.WindowSize(1400, 1000),
	)...)
	ctx, closeTab := chromedp.NewContext(browser)
	t.Cleanup(func() {
		closeTab()
		stop() // waits until its folder is gone
		end()
	})
	return ctx
}

// picture takes a screenshot, and writes the picture if a folder is configured.
func picture(ctx context.Context, t *testing.T, name string) {
	t.Helper()
	png, err := chromedp.Run(ctx, chromedp.CaptureScreenshot())
	if err != nil {
		t.Errorf("screenshot: %v", err)
		return
	}
	if dir := os.Getenv(envArtifacts); dir != "" {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Error(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name+".png"), png, 0o644); err != nil {
			t.Error(err)
		}
	}
}

// The management UI redraws itself every 5 s and removes elements found before. So the
// functions below find and use an element in a single step, inside the page.

// element returns JavaScript for the first element of an XPath.
func element(xpath string) string {
	return fmt.Sprintf(`document.evaluate(%q, document, null, XPathResult.FIRST_ORDERED_NODE_TYPE, null).singleNodeValue`, xpath)
}

// open clicks an element repeatedly until another element is visible.
func (v viewer) open(what, click, until string) {
	v.t.Helper()
	step := fmt.Sprintf(`(() => {
		if (%s?.getClientRects().length > 0) return true;
		%s?.click();
		return false;
	})()`, element(until), element(click))
	rig.Eventually(v.t, what+" is shown", func() bool { return evaluate[bool](v, step) })
}

// text returns the text of an element.
func (v viewer) text(xpath string) string {
	v.t.Helper()
	return evaluate[string](v, element(xpath)+`?.innerText ?? ""`)
}

func TestManagementShowsTheQueueAndItsConsumers(t *testing.T) {
	t.Parallel()
	r := rig.New(t)
	const prefetch = 7
	methods := rig.Methods{"b": func(_ context.Context, req *amqpx.Request) ([]byte, error) { return []byte(req.Method), nil }}
	for range 2 {
		r.Serve(methods, amqpx.WithPrefetch(prefetch), amqpx.WithName("browser-test"))
	}
	rig.Call(t, r.Ready(), "b", []byte("request"))

	ui, err := url.Parse(rig.ManagementURL())
	if err != nil {
		t.Fatal(err)
	}
	user := ui.User.Username()
	password, _ := ui.User.Password()
	ui.User = nil
	v := viewer{t, tab(t)}
	t.Cleanup(func() {
		if t.Failed() {
			picture(v.ctx, t, "failed")
		}
	})
	if err := chromedp.Do(v.ctx,
		chromedp.Navigate(ui.String()),
		chromedp.WaitVisible(`input[name="username"]`),
		chromedp.SendKeys(`input[name="username"]`, user),
		chromedp.SendKeys(`input[name="password"]`, password),
		chromedp.Click(`input[type="submit"]`),
		chromedp.WaitVisible(`a[href="#/queues"]`),
	); err != nil {
		t.Fatalf("log in: %v", err)
	}
	link := fmt.Sprintf(`//table[contains(@class,"list")]//a[normalize-space()="%s"]`, r.Queue.Name)
	v.open("the queue among the queues", `//a[@href="#/queues"]`, link)
	if row := v.text(link + `/ancestor::tr`); !strings.Contains(row, r.Queue.Name) || !strings.Contains(row, "D") {
		t.Errorf("row %q, want the durable queue", row)
	}
	picture(v.ctx, t, "queues")

	v.open("the queue's page", link, fmt.Sprintf(`//h1[contains(.,"%s")]`, r.Queue.Name))
	section := `//div[contains(@class,"section")][h2[contains(.,"Consumers") and contains(.,"(2)")]]`
	// The section is folded at first.
	v.open("the consumers", section+`/h2`, section+`//table`)
	consumers := v.text(section + `//table`)
	picture(v.ctx, t, "queue")
	if tags := strings.Count(consumers, "browser-test-"); tags != 2 {
		t.Errorf("%d of our consumers' tags are shown, want 2:\n%s", tags, consumers)
	}
	if !strings.Contains(consumers, fmt.Sprint(prefetch)) {
		t.Errorf("the consumers' prefetch %d is not shown:\n%s", prefetch, consumers)
	}
}
