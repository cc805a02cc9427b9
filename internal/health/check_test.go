package health

import (
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"rabbitmq-rpc/internal/lifecycle"
	"rabbitmq-rpc/pkg/amqpx"
)

func TestTargets(t *testing.T) {
	t.Parallel()
	loopback := []string{"127.0.0.1", "::1"}
	for addr, want := range map[string][]string{
		":8080":          loopback,
		"0.0.0.0:8080":   loopback,
		"[::]:8080":      loopback,
		"127.0.0.2:8080": {"127.0.0.2"},
		"[::1]:8080":     {"::1"},
		"box:8080":       {"box"},
	} {
		hosts, port, err := targets(addr)
		if err != nil || port != "8080" || !slices.Equal(hosts, want) {
			t.Errorf("%s: got %q, port %q, %v; want %q", addr, hosts, port, err, want)
		}
	}
	if _, _, err := targets("8080"); err == nil {
		t.Error("an address without a port was accepted")
	}
}

func TestCheckReachesEveryListenAddress(t *testing.T) {
	t.Parallel()
	for _, host := range []string{"", "0.0.0.0", "[::]", "127.0.0.1"} {
		s := start(t, host+":0", status{State: amqpx.StateReady})
		_, port, err := net.SplitHostPort(s.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		if err := Check(t.Context(), host+":"+port); err != nil {
			t.Errorf("listening on %q: %v", host, err)
		}
	}
}

func TestCheckSaysWhyNot(t *testing.T) {
	t.Parallel()
	s := start(t, "127.0.0.1:0", status{State: amqpx.StateReconnecting, Err: errRefused})
	err := Check(t.Context(), s.Addr().String())
	const want = "not ready: reconnecting: not connected to the broker yet: read tcp a->b: connection refused"
	if err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
	if lifecycle.ExitCode(err) != lifecycle.ExitFailed {
		t.Errorf("exit code %d", lifecycle.ExitCode(err))
	}
}

func TestCheckOfSomethingElse(t *testing.T) {
	t.Parallel()
	other := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "<html>", http.StatusBadGateway)
	}))
	defer other.Close()
	err := Check(t.Context(), strings.TrimPrefix(other.URL, "http://"))
	if err == nil || !strings.HasSuffix(err.Error(), "/readyz: 502 Bad Gateway") {
		t.Errorf("got %v", err)
	}
}

func TestCheckEndsWithItsContext(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	hangs := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		cancel()
		<-r.Context().Done()
	}))
	defer hangs.Close()
	if err := Check(ctx, strings.TrimPrefix(hangs.URL, "http://")); err == nil {
		t.Error("a server that never answers is healthy")
	}
}

func TestCheckSelf(t *testing.T) {
	s := start(t, "127.0.0.1:0", status{State: amqpx.StateReady})
	t.Setenv("HTTP_ADDR", s.Addr().String())
	if err := CheckSelf(t.Context()); err != nil {
		t.Error(err)
	}
	for value, want := range map[string]string{
		"":         "HTTP_ADDR: is empty",
		"8080":     `HTTP_ADDR: is not an address such as :8080`,
		":http":    `HTTP_ADDR: is not an address such as :8080`,
		":99999":   `HTTP_ADDR: is not an address such as :8080`,
		"::1:8080": `HTTP_ADDR: is not an address such as :8080`,
	} {
		t.Setenv("HTTP_ADDR", value)
		err := CheckSelf(t.Context())
		if lifecycle.ExitCode(err) != lifecycle.ExitConfig || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, want %s", value, err, want)
		}
	}
}
