package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"rabbitmq-rpc/internal/config"
	"rabbitmq-rpc/internal/lifecycle"
	"rabbitmq-rpc/pkg/amqpx"
	"rabbitmq-rpc/services/rpc-client/internal/report"
)

func readReport(t *testing.T, dir string) *report.Report {
	t.Helper()
	content, err := os.ReadFile(filepath.Join(dir, "report.json"))
	if err != nil {
		t.Fatal(err)
	}
	var r report.Report
	if err := json.Unmarshal(content, &r); err != nil {
		t.Fatal(err)
	}
	return &r
}

func TestCallAllReports(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		fake     *fake
		err      string
		headline string
		want     report.Report
	}{
		"ok": {
			&fake{response: good, stats: amqpx.ClientStats{Duplicates: 1, Reconnects: 2}},
			"", "every call was answered as expected: \"b\" on queue \"q\", 2 at a time\n",
			report.Report{Calls: 10, OK: 10, Duplicates: 1, Reconnects: 2},
		},
		"failed": {
			&fake{response: func(_ context.Context, n int64) ([]byte, error) {
				if n == 1 {
					return []byte("wrong"), nil
				}
				return []byte("b"), nil
			}},
			"1 of 10 calls did not get the expected response", "FAILED: \"b\" on queue \"q\", 2 at a time\n",
			report.Report{Calls: 10, OK: 9, Mismatched: 1},
		},
		"no clean close": {
			&fake{response: good, closeErr: errors.New("too slow")},
			"", "every call was answered as expected",
			report.Report{Calls: 10, OK: 10},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			settings := plan(10, 2)
			settings.Queue.Name, settings.ReportDir = "q", t.TempDir()
			var out bytes.Buffer
			err := callAll(t.Context(), t.Context(), c.fake, settings, silent{}, &out, zap.NewNop())
			if text := errText(err); text != c.err {
				t.Errorf("err is %q, want %q", text, c.err)
			}
			if !c.fake.closed.Load() {
				t.Error("the client was not closed")
			}
			if !strings.HasPrefix(out.String(), c.headline) {
				t.Errorf("the summary begins %q, want %q", out.String(), c.headline)
			}
			got := readReport(t, settings.ReportDir)
			if got.Calls != c.want.Calls || got.OK != c.want.OK || got.Duplicates != c.want.Duplicates ||
				got.Reconnects != c.want.Reconnects || got.Mismatched != c.want.Mismatched || got.Interrupted {
				t.Errorf("reported %+v, want %+v", got, c.want)
			}
		})
	}
}

func errText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

func TestCallAllInterrupted(t *testing.T) {
	t.Parallel()
	settings := plan(1000, 1)
	settings.ReportDir = t.TempDir()
	drain, interrupt := context.WithCancel(t.Context())
	f := &fake{response: func(_ context.Context, n int64) ([]byte, error) {
		if n == 3 {
			interrupt()
		}
		return []byte("b"), nil
	}}
	var out bytes.Buffer
	err := callAll(drain, t.Context(), f, settings, silent{}, &out, zap.NewNop())
	if lifecycle.ExitCode(err) != lifecycle.ExitOK {
		t.Errorf("a clean interrupted run ends in %v", err)
	}
	if r := readReport(t, settings.ReportDir); !r.Interrupted || r.Calls != 3 || r.OK != 3 {
		t.Errorf("reported %+v", r)
	}
	if !strings.HasPrefix(out.String(), "interrupted after 3 of 1000 calls") {
		t.Errorf("the summary is %q", out.String())
	}
}

func TestCallAllCannotReport(t *testing.T) {
	t.Parallel()
	settings := plan(1, 1)
	settings.ReportDir = occupied(t)
	f := &fake{response: good}
	err := callAll(t.Context(), t.Context(), f, settings, silent{}, io.Discard, zap.NewNop())
	if lifecycle.ExitCode(err) != lifecycle.ExitFailed || !strings.HasPrefix(err.Error(), "write the report "+settings.ReportDir) {
		t.Errorf("got %v", err)
	}
}

// TestCallAllWithoutAReader checks that the report and the exit code are correct even if the
// summary cannot be written.
func TestCallAllWithoutAReader(t *testing.T) {
	t.Parallel()
	closed, err := os.Create(filepath.Join(t.TempDir(), "out"))
	if err != nil || closed.Close() != nil {
		t.Fatal(err)
	}
	settings := plan(1, 1)
	settings.ReportDir = t.TempDir()
	core, logs := observer.New(zap.InfoLevel)
	f := &fake{response: good}
	if err := callAll(t.Context(), t.Context(), f, settings, silent{}, closed, zap.New(core)); err != nil {
		t.Errorf("got %v", err)
	}
	if r := readReport(t, settings.ReportDir); !r.Passed || r.OK != 1 {
		t.Errorf("reported %+v", r)
	}
	if logs.FilterMessage("summary was not printed").Len() != 1 {
		t.Errorf("logged %v", logs.All())
	}
}

func TestWaitForConnectionIsBounded(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		core, logs := observer.New(zap.WarnLevel)
		start := time.Now()
		waitForConnection(t.Context(), &neverReady{}, time.Second, zap.New(core))
		if waited := time.Since(start); waited != time.Second || logs.Len() != 1 {
			t.Errorf("waited %v, logged %v", waited, logs.All())
		}
		drain, interrupt := context.WithCancel(t.Context())
		interrupt()
		waitForConnection(drain, &neverReady{}, time.Second, zap.New(core))
		if logs.Len() != 1 {
			t.Errorf("an interruption was logged as a missing link: %v", logs.All())
		}
	})
}

type neverReady struct{ fake }

func (*neverReady) WaitReady(ctx context.Context) error {
	<-ctx.Done()
	return ctx.Err()
}

// execute runs the client as main does, in the test's environment.
func execute(ctx context.Context, stderr io.Writer, args ...string) (code int, stdout string) {
	var out bytes.Buffer
	err := run(ctx, args, &out, stderr)
	return lifecycle.Finish(stderr, name, err), out.String()
}

func TestRunWithBadConfiguration(t *testing.T) {
	isolate(t)
	t.Setenv("RPC_CALLS", "x")
	t.Setenv("AMQP_URL", "http://u:hunter2@h/")
	t.Setenv("RPC_REPORT_DIR", "/proc/self/no")
	var diag bytes.Buffer
	code, out := execute(t.Context(), &diag)
	const want = "rpc-client: bad configuration:\n" +
		"  RPC_CALLS: \"x\" is not a whole number\n" +
		"  AMQP_URL: the URL does not begin with amqp:// or amqps://\n" +
		"  RPC_REPORT_DIR: mkdir /proc/self/no: no such file or directory\n"
	if code != 2 || out != "" || diag.String() != want {
		t.Errorf("exit code %d, %q, %q", code, out, diag.String())
	}
}

// TestCheck reads the settings without a broker.
func TestCheck(t *testing.T) {
	isolate(t)
	t.Setenv("AMQP_URL", "amqp://127.0.0.1:1")
	var diag bytes.Buffer
	if code, out := execute(t.Context(), &diag, "check"); code != 0 || out != "" || diag.Len() > 0 {
		t.Errorf("exit code %d, %q, %q", code, out, diag.String())
	}
	t.Setenv("RPC_CALLS", "x")
	if code, _ := execute(t.Context(), &diag, "check"); code != 2 || !strings.Contains(diag.String(), "RPC_CALLS") {
		t.Errorf("bad settings: exit code %d, %q", code, diag.String())
	}
}

func TestRunWithArguments(t *testing.T) {
	isolate(t)
	if code, out := execute(t.Context(), io.Discard, "help"); code != 0 || out != usage {
		t.Errorf("help: exit code %d, %q", code, out)
	}
	if code, _ := execute(t.Context(), io.Discard, "--calls=3"); code != 2 {
		t.Errorf("unknown argument: exit code %d", code)
	}
	t.Setenv("HTTP_ADDR", "127.0.0.1:1")
	var diag bytes.Buffer
	if code, _ := execute(t.Context(), &diag, "healthcheck"); code != 1 || !strings.Contains(diag.String(), "connection refused") {
		t.Errorf("healthcheck of nothing: exit code %d, %q", code, diag.String())
	}
}

func TestRunWithBusyPort(t *testing.T) {
	isolate(t)
	var listen net.ListenConfig
	busy, err := listen.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = busy.Close() }()
	t.Setenv("AMQP_URL", "amqp://127.0.0.1:1/")
	t.Setenv("HTTP_ADDR", busy.Addr().String())
	var diag bytes.Buffer
	if code, _ := execute(t.Context(), &diag); code != 2 || !strings.Contains(diag.String(), "rpc-client: HTTP_ADDR: listen tcp") {
		t.Errorf("exit code %d, %q", code, diag.String())
	}
}

//nolint:paralleltest // sets the environment
func TestRunWithoutBroker(t *testing.T) {
	isolate(t)
	dir := t.TempDir()
	for name, value := range map[string]string{
		"AMQP_URL": "amqp://u:hunter2@127.0.0.1:1/", "HTTP_ADDR": "127.0.0.1:0", "RPC_REPORT_DIR": dir,
		"RPC_CALLS": "50", "RPC_CONCURRENCY": "2", "RPC_TIMEOUT": "50ms",
	} {
		t.Setenv(name, value)
	}
	var diag bytes.Buffer
	code, out := execute(t.Context(), &diag)
	if code != 1 || !strings.HasPrefix(out, "FAILED: ") {
		t.Errorf("exit code %d, %q", code, out)
	}
	if !strings.Contains(diag.String(), " were not tried: no call got a response since the start") ||
		strings.Contains(diag.String(), "hunter2") {
		t.Errorf("standard error is %s", diag.String())
	}
	r := readReport(t, dir)
	if r.Calls+r.NotTried != 50 || r.Calls < 3 || r.Errors["deadline_exceeded"]+r.Errors["unavailable"] != r.Calls || r.Lost != 0 {
		t.Errorf("reported %+v", r)
	}
}

// trigger is a standard error stream that sends a signal to this process when text is written.
type trigger struct {
	bytes.Buffer

	text string
}

func (w *trigger) Write(p []byte) (int, error) {
	if w.text != "" && bytes.Contains(p, []byte(w.text)) {
		w.text = ""
		if err := syscall.Kill(os.Getpid(), syscall.SIGTERM); err != nil {
			return 0, err
		}
	}
	return w.Buffer.Write(p)
}

func TestRunUntilSignal(t *testing.T) {
	isolate(t)
	dir := t.TempDir()
	t.Setenv("AMQP_URL", "amqp://127.0.0.1:1/")
	t.Setenv("HTTP_ADDR", "127.0.0.1:0")
	t.Setenv("RPC_REPORT_DIR", dir)
	t.Setenv("RPC_TIMEOUT", "1h")
	code, out := execute(t.Context(), &trigger{text: "client starts"})
	if code != 0 || !strings.HasPrefix(out, "interrupted after 0 of 1000 calls") {
		t.Errorf("exit code %d, %q", code, out)
	}
	if r := readReport(t, dir); !r.Interrupted || r.Calls != 0 {
		t.Errorf("reported %+v", r)
	}
}

// occupied returns a path below a file, where even root cannot write.
func occupied(t *testing.T) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	return filepath.Join(file, "dir")
}

func TestBrokerOf(t *testing.T) {
	t.Parallel()
	for url, want := range map[string]string{
		"amqp://u:hunter2@h:5672/v":                  "h:5672",
		"amqp://u:hunter2@h/,amqp://i/":              "h:5672",
		"amqps://u:hunter2@[::1]:5671/ , amqps://i/": "[::1]:5671",
		"amqp://u:hunter%zz2@h/":                     "",
	} {
		if got := brokerOf(amqpx.Status{}, config.Secret(url)); got != want {
			t.Errorf("%q: %q, want %q", url, got, want)
		}
	}
	if got := brokerOf(amqpx.Status{Broker: "b:1"}, "amqp://h/"); got != "b:1" {
		t.Errorf("got %q", got)
	}
}

func TestVhostOf(t *testing.T) {
	t.Parallel()
	for urls, want := range map[string]string{
		"amqp://u:p@h": "/", "amqp://u:p@h/": "/", "amqp://u:p@h/%2F": "/", "amqp://u:p@h/a%2Fb, amqp://u:p@h2/a%2Fb": "a/b", "amqps://h:1/v": "v",
	} {
		if got := vhostOf(config.Secret(urls)); got != want {
			t.Errorf("%s: %q, want %q", urls, got, want)
		}
	}
}
