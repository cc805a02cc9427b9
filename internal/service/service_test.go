package service

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"

	"rabbitmq-rpc/internal/config/configtest"
	"rabbitmq-rpc/internal/health"
	"rabbitmq-rpc/internal/lifecycle"
	"rabbitmq-rpc/pkg/amqpx"
)

// settings are those of a service without settings of its own.
type settings struct{ Config }

// executed is a service that records what Run does with it.
type executed struct {
	settings               settings
	checked, served        int
	checkFault, serveFault error
	drain, force           context.Context //nolint:containedctx // what Serve got
	stdout, stderr, log    bytes.Buffer
}

func (e *executed) run(ctx context.Context, args ...string) error {
	return Run(ctx, args, &e.stdout, &e.stderr, io.MultiWriter(&e.stderr, &e.log), Program{
		Name: "test", Usage: "usage\n", Settings: &e.settings,
		Check: func() error { e.checked++; return e.checkFault },
		Serve: func(drain, force context.Context, logger *zap.Logger) error {
			e.served++
			e.drain, e.force = drain, force
			logger.Info("served")
			return e.serveFault
		},
	})
}

//nolint:paralleltest // sets the environment
func TestRunServes(t *testing.T) {
	configtest.Isolate(t, &settings{})
	e := &executed{serveFault: errors.New("failed")}
	if err := e.run(t.Context()); !errors.Is(err, e.serveFault) {
		t.Errorf("got %v, want the error of Serve", err)
	}
	if e.served != 1 || e.checked != 0 || e.stdout.Len() > 0 {
		t.Errorf("served %d times, checked %d times, printed %q", e.served, e.checked, e.stdout.String())
	}
	if got := e.log.String(); !strings.Contains(got, `"msg":"served"`) || !strings.Contains(got, `"service":"test"`) || e.stderr.String() != got {
		t.Errorf("logged %q", got)
	}
	if e.settings.Queue.Name != amqpx.DefaultQueue {
		t.Errorf("served before the settings were read: %+v", e.settings.Queue)
	}
	if e.drain.Err() == nil || e.force.Err() == nil {
		t.Error("the contexts outlive Run")
	}
}

//nolint:paralleltest // sets the environment
func TestRunEndsWithItsParent(t *testing.T) {
	configtest.Isolate(t, &settings{})
	parent, cancel := context.WithCancel(t.Context())
	cancel()
	err := Run(parent, nil, io.Discard, io.Discard, io.Discard, Program{
		Settings: &settings{},
		Serve:    func(drain, _ context.Context, _ *zap.Logger) error { return drain.Err() },
	})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("got %v: Serve did not see the end of the parent", err)
	}
}

func TestRunCommands(t *testing.T) {
	for name, c := range map[string]struct {
		args    []string
		addr    string
		fault   error
		checked int
		stdout  string
		code    int
	}{
		"help":                     {[]string{"help"}, "", nil, 0, "usage\n", lifecycle.ExitOK},
		"unknown":                  {[]string{"go"}, "", nil, 0, "", lifecycle.ExitConfig},
		"check":                    {[]string{"check"}, "", nil, 1, "", lifecycle.ExitOK},
		"check of the service":     {[]string{"check"}, "", lifecycle.ConfigError(errors.New("bad")), 1, "", lifecycle.ExitConfig},
		"check of bad settings":    {[]string{"check"}, "8080", nil, 0, "", lifecycle.ExitConfig},
		"bad settings":             {nil, "8080", nil, 0, "", lifecycle.ExitConfig},
		"healthcheck of no one":    {[]string{"healthcheck"}, "127.0.0.1:1", nil, 0, "", lifecycle.ExitFailed},
		"help needs no settings":   {[]string{"help"}, "8080", nil, 0, "usage\n", lifecycle.ExitOK},
		"one argument at the most": {[]string{"check", "help"}, "", nil, 0, "", lifecycle.ExitConfig},
	} {
		t.Run(name, func(t *testing.T) {
			configtest.Isolate(t, &settings{})
			if c.addr != "" {
				t.Setenv("HTTP_ADDR", c.addr)
			}
			e := &executed{checkFault: c.fault}
			err := e.run(t.Context(), c.args...)
			if code := lifecycle.ExitCode(err); code != c.code || e.checked != c.checked || e.served != 0 || e.stdout.String() != c.stdout {
				t.Errorf("exit code %d (%v), checked %d times, served %d times, printed %q; want %d, %d, 0, %q",
					code, err, e.checked, e.served, e.stdout.String(), c.code, c.checked, c.stdout)
			}
		})
	}
}

// TestCheckWithoutAFurtherCheck reads the settings only.
//
//nolint:paralleltest // sets the environment
func TestCheckWithoutAFurtherCheck(t *testing.T) {
	configtest.Isolate(t, &settings{})
	if err := Run(t.Context(), []string{"check"}, io.Discard, io.Discard, io.Discard, Program{Settings: &settings{}}); err != nil {
		t.Errorf("got %v", err)
	}
}

// source is a service with a fixed status.
type source struct{}

func (source) Status() amqpx.Status { return amqpx.Status{State: amqpx.StateReady} }

func TestStartHTTP(t *testing.T) {
	t.Parallel()
	listener, err := health.Listen(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var c Config
	stop, err := c.StartHTTP(t.Context(), t.Context(), listener, source{}, time.Second, zap.NewNop())
	if err != nil {
		t.Fatal(err)
	}
	get := func() (int, error) {
		request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+listener.Addr().String()+"/readyz", http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		transport := &http.Transport{}
		defer transport.CloseIdleConnections()
		response, err := transport.RoundTrip(request)
		if err != nil {
			return 0, err
		}
		return response.StatusCode, response.Body.Close()
	}
	if code, err := get(); code != http.StatusOK || err != nil {
		t.Errorf("readyz: %d, %v", code, err)
	}
	stop()
	if code, err := get(); err == nil {
		t.Errorf("stopped, but answers %d", code)
	}
}

func TestStartFields(t *testing.T) {
	t.Parallel()
	listener, err := health.Listen(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = listener.Close() }()
	s := &settings{Config{}}
	s.Queue.Name, s.AMQP.URL = "q", "amqp://u:hunter2@h/"
	got := make(map[string]string)
	for _, f := range StartFields(zap.NewNop(), s, listener.Addr()) {
		value := f.String
		if text, ok := f.Interface.(interface{ String() string }); ok {
			value = text.String()
		}
		got[f.Key] = value
	}
	if got["queue"] != "q" || got["http_addr"] != listener.Addr().String() || !strings.Contains(got["broker"], "h") || strings.Contains(got["broker"], "hunter2") {
		t.Errorf("fields %v", got)
	}
	for _, key := range []string{"version", "config"} {
		if _, ok := got[key]; !ok {
			t.Errorf("no field %s in %v", key, got)
		}
	}
}
