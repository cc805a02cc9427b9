package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"rabbitmq-rpc/internal/lifecycle"
	"rabbitmq-rpc/pkg/amqpx"
)

type handlers map[string]amqpx.Handler

func (h handlers) Handle(method string, f amqpx.Handler, _ ...amqpx.HandleOption) error {
	if h[method] != nil {
		return errors.New("twice: " + method)
	}
	h[method] = f
	return nil
}

func TestFunctions(t *testing.T) {
	t.Parallel()
	served := handlers{}
	if err := register(served); err != nil {
		t.Fatal(err)
	}
	if len(served) != 2 {
		t.Errorf("%d functions, want 2", len(served))
	}
	for _, name := range []string{"a", "b"} {
		for _, body := range []string{"request", "", "\xff"} {
			got, err := served[name](t.Context(), &amqpx.Request{Method: name, Body: []byte(body)})
			if string(got) != name || err != nil {
				t.Errorf("%s answers %q, %v", name, got, err)
			}
		}
	}
	if err := register(served); err == nil {
		t.Error("a function that cannot be added is no error")
	}
}

// fake is a server whose Serve returns when its context ends or, if finish is set, when the
// server is closed.
type fake struct {
	finish bool
	err    error
	closed chan struct{}
}

func (f *fake) Serve(ctx context.Context) error {
	<-ctx.Done()
	if f.finish {
		<-f.closed
	}
	return f.err
}

func (f *fake) Close() {
	select {
	case <-f.closed:
	default:
		close(f.closed)
	}
}

func (f *fake) Stats() amqpx.ServerStats { return amqpx.ServerStats{Requests: 3} }

func TestServeUntilDrained(t *testing.T) {
	t.Parallel()
	for _, failure := range []error{nil, amqpx.ErrDrainTimeout} {
		core, logs := observer.New(zap.InfoLevel)
		drain, cancel := context.WithCancel(t.Context())
		cancel()
		err := serveUntil(drain, t.Context(), &fake{err: failure, closed: make(chan struct{})}, zap.New(core))
		if !errors.Is(err, failure) || (err == nil) != (failure == nil) {
			t.Errorf("got %v, want %v", err, failure)
		}
		stopped := logs.FilterMessage("server stopped").All()
		if len(stopped) != 1 || stopped[0].ContextMap()["requests"] != uint64(3) {
			t.Errorf("logged %v", logs.All())
		}
	}
}

func TestServeUntilForced(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		force, cancelForce := context.WithCancel(t.Context())
		drain, cancelDrain := context.WithCancel(force)
		ended := make(chan error, 1)
		go func() {
			ended <- serveUntil(drain, force, &fake{finish: true, closed: make(chan struct{})}, zap.NewNop())
		}()
		cancelDrain()
		synctest.Wait()
		select {
		case err := <-ended:
			t.Fatalf("ended before it was drained: %v", err)
		default:
		}
		cancelForce()
		if err := <-ended; !errors.Is(err, errForced) || lifecycle.ExitCode(err) != lifecycle.ExitFailed {
			t.Errorf("got %v", err)
		}
	})
}

// execute runs the server as main does, in the test's environment.
func execute(ctx context.Context, args ...string) (code int, stdout, stderr string) {
	var out, diag bytes.Buffer
	err := run(ctx, args, &out, &diag)
	code = lifecycle.Finish(&diag, name, err)
	return code, out.String(), diag.String()
}

func TestRunWithArguments(t *testing.T) {
	isolate(t)
	if code, out, _ := execute(t.Context(), "--help"); code != 0 || out != usage {
		t.Errorf("help: exit code %d, %q", code, out)
	}
	if code, _, diag := execute(t.Context(), "go"); code != 2 || !strings.HasPrefix(diag, `rpc-server: unknown arguments ["go"]`) {
		t.Errorf("unknown argument: exit code %d, %q", code, diag)
	}
	var code atomic.Int64
	code.Store(http.StatusOK)
	probed := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(int(code.Load())) }))
	defer probed.Close()
	t.Setenv("HTTP_ADDR", strings.TrimPrefix(probed.URL, "http://"))
	if code, _, diag := execute(t.Context(), "healthcheck"); code != 0 || diag != "" {
		t.Errorf("healthy: exit code %d, %q", code, diag)
	}
	code.Store(http.StatusServiceUnavailable)
	if code, _, diag := execute(t.Context(), "healthcheck"); code != 1 || !strings.Contains(diag, "503") {
		t.Errorf("unhealthy: exit code %d, %q", code, diag)
	}
}

func TestRunWithBadConfiguration(t *testing.T) {
	isolate(t)
	t.Setenv("RPC_WORKERS", "x")
	t.Setenv("LOG_LEVEL", "loud")
	code, out, diag := execute(t.Context())
	const want = "rpc-server: bad configuration:\n" +
		"  LOG_LEVEL: the value is not one of: debug, info, warn, error\n" +
		"  RPC_WORKERS: \"x\" is not a whole number\n"
	if code != 2 || out != "" || diag != want {
		t.Errorf("exit code %d, %q, %q", code, out, diag)
	}
}

// TestCheck reads the settings without a broker.
func TestCheck(t *testing.T) {
	isolate(t)
	if code, _, diag := execute(t.Context(), "check"); code != 0 || diag != "" {
		t.Errorf("exit code %d, %q", code, diag)
	}
	t.Setenv("RPC_WORKERS", "0")
	if code, _, diag := execute(t.Context(), "check"); code != 2 || !strings.Contains(diag, "RPC_WORKERS") {
		t.Errorf("bad settings: exit code %d, %q", code, diag)
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
	t.Setenv("AMQP_URL", "amqp://u:hunter2@127.0.0.1:1/")
	t.Setenv("HTTP_ADDR", busy.Addr().String())
	code, _, diag := execute(t.Context())
	if code != 2 || !strings.Contains(diag, "rpc-server: HTTP_ADDR: listen tcp "+busy.Addr().String()) {
		t.Errorf("exit code %d, %q", code, diag)
	}
}

// trigger is a standard error stream that sends a signal to this process when text is written.
type trigger struct {
	bytes.Buffer

	text   string
	signal syscall.Signal
}

func (w *trigger) Write(p []byte) (int, error) {
	if w.text != "" && bytes.Contains(p, []byte(w.text)) {
		w.text = ""
		if err := syscall.Kill(os.Getpid(), w.signal); err != nil {
			return 0, err
		}
	}
	return w.Buffer.Write(p)
}

//nolint:paralleltest // sets the environment
func TestRunWithoutBrokerUntilSignal(t *testing.T) {
	for _, signal := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT} {
		isolate(t)
		t.Setenv("AMQP_URL", "amqp://u:hunter2@127.0.0.1:1/")
		t.Setenv("HTTP_ADDR", "127.0.0.1:0")
		diag := &trigger{text: "server starts", signal: signal}
		err := run(t.Context(), nil, io.Discard, diag)
		if err != nil {
			t.Errorf("%v: %v", signal, err)
		}
		got := diag.String()
		if strings.Contains(got, "hunter2") || !strings.Contains(got, `"AMQP_URL":"amqp://u@127.0.0.1:1"`) {
			t.Errorf("the password is not hidden: %s", got)
		}
		if strings.Count(got, "server stopped") != 1 {
			t.Errorf("the end was not logged once: %s", got)
		}
	}
}
