//go:build integration

// Package browser looks at RabbitMQ's management UI as a person would: it logs in
// and finds the request queue with its consumers.
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
	// envChromium names another browser than the one of Debian's package chromium.
	envChromium = "AMQPX_CHROMIUM"
	// envArtifacts names a folder for screenshots.
	envArtifacts = "AMQPX_TEST_ARTIFACTS"
	// patience is for everything together: the UI counts consumers every 5 s.
	patience = 90 * time.Second
)

func TestMain(m *testing.M) { rig.Main(m) }

// tab opens a browser that ends with the test.
func tab(t *testing.T) context.Context {
	t.Helper()
	program := os.Getenv(envChromium)
	if program == "" {
		program = "/usr/bin/chromium"
	}
	if _, err := os.Stat(program); err != nil {
		t.Fatalf("no browser: %v. Install the package chromium, or name another by %s", err, envChromium)
	}
	browser, stop := chromedp.NewExecAllocator(rig.Within(t, patience), append(
		chromedp.DefaultExecAllocatorOptions[:],
		chromedp.ExecPath(program),
		chromedp.NoSandbox,
		chromedp.DisableGPU,
		chromedp.Flag("disable-background-networking", true),
		chromedp.UserDataDir(t.TempDir()),
		chromedp.WindowSize(1400, 1000),
	)...)
	ctx, closeTab := chromedp.NewContext(browser)
	t.Cleanup(func() {
		closeTab()
		stop()
	})
	return ctx
}

// picture takes a screenshot, if a folder for it is named.
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
	ctx := tab(t)
	check := func(what string, err error) {
		t.Helper()
		if err != nil {
			picture(ctx, t, "failed")
			t.Fatalf("%s: %v", what, err)
		}
	}
	do := func(what string, steps ...chromedp.Action[chromedp.Void]) {
		t.Helper()
		check(what, chromedp.Do(ctx, steps...))
	}
	text := func(selector string) string {
		t.Helper()
		shown, err := chromedp.Run(ctx, chromedp.Text(selector))
		check("read "+selector, err)
		return shown
	}
	do("log in",
		chromedp.Navigate(ui.String()),
		chromedp.WaitVisible(`input[name="username"]`),
		chromedp.SendKeys(`input[name="username"]`, user),
		chromedp.SendKeys(`input[name="password"]`, password),
		chromedp.Click(`input[type="submit"]`),
		chromedp.WaitVisible(`a[href="#/queues"]`),
	)
	link := fmt.Sprintf(`//table[contains(@class,"list")]//a[normalize-space()="%s"]`, r.Queue.Name)
	do("find the queue among the queues",
		chromedp.Click(`a[href="#/queues"]`),
		chromedp.WaitVisible(link),
	)
	if row := text(link + `/ancestor::tr`); !strings.Contains(row, r.Queue.Name) || !strings.Contains(row, "D") {
		t.Errorf("row %q, want the durable queue", row)
	}
	picture(ctx, t, "queues")

	table := `//div[contains(@class,"section")][h2[contains(.,"Consumers")]]`
	do("open the queue's page",
		chromedp.Click(link),
		chromedp.WaitVisible(fmt.Sprintf(`//h1[contains(.,"%s")]`, r.Queue.Name)),
		chromedp.WaitVisible(table+`/h2[contains(.,"(2)")]`),
	)
	// The section is folded at first.
	do("see the consumers",
		chromedp.Click(table+`/h2`),
		chromedp.WaitVisible(table+`//table`),
	)
	consumers := text(table + `//table`)
	picture(ctx, t, "queue")
	if tags := strings.Count(consumers, "browser-test-"); tags != 2 {
		t.Errorf("%d of our consumers' tags are shown, want 2:\n%s", tags, consumers)
	}
	if !strings.Contains(consumers, fmt.Sprint(prefetch)) {
		t.Errorf("the consumers' prefetch %d is not shown:\n%s", prefetch, consumers)
	}
}
