package health

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"time"

	"rabbitmq-rpc/internal/config"
)

// checkTimeout limits one check; a container's health check has the same timeout.
const checkTimeout = 3 * time.Second

// CheckSelf runs [Check] with the address in the environment.
func CheckSelf(ctx context.Context) error {
	var c Config
	if err := config.Load(&c); err != nil {
		return err
	}
	return Check(ctx, c.Addr)
}

// Check asks the service that listens on addr, the value of the service's HTTP_ADDR, whether
// it is ready. The error is the reason if it is not ready.
func Check(ctx context.Context, addr string) error {
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	hosts, port, err := targets(addr)
	if err != nil {
		return err
	}
	var failures []error
	for _, host := range hosts {
		answered, err := ask(ctx, "http://"+net.JoinHostPort(host, port)+"/readyz")
		if answered {
			return err
		}
		failures = append(failures, err)
	}
	return errors.Join(failures...)
}

// targets lists the hosts to try for a listen address. If the address means every interface,
// these are the loopback addresses.
func targets(addr string) (hosts []string, port string, err error) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, "", errors.New("HTTP_ADDR: is not an address such as :8080 or 127.0.0.1:8080")
	}
	if ip, parseErr := netip.ParseAddr(host); host == "" || (parseErr == nil && ip.IsUnspecified()) {
		return []string{"127.0.0.1", "::1"}, port, nil
	}
	return []string{host}, port, nil
}

// ask reports whether a service responded at url, and returns an error unless it is ready.
func ask(ctx context.Context, url string) (answered bool, err error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err != nil {
		return false, fmt.Errorf("health check: %w", err)
	}
	// The zero Transport uses no proxy: the service is in this container.
	transport := &http.Transport{DisableKeepAlives: true}
	defer transport.CloseIdleConnections()
	response, err := transport.RoundTrip(request)
	if err != nil {
		return false, fmt.Errorf("health check of %s: %w", url, err)
	}
	defer func() { _ = response.Body.Close() }()
	if response.StatusCode == http.StatusOK {
		return true, nil
	}
	const most = 16 << 10
	var body readiness
	if err := json.NewDecoder(io.LimitReader(response.Body, most)).Decode(&body); err != nil {
		return true, fmt.Errorf("health check of %s: %s", url, response.Status)
	}
	return true, fmt.Errorf("not ready: %s", because(body.State, body.Reason))
}
