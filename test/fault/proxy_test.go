//go:build fault

package fault

import (
	"bytes"
	"context"
	"encoding/json"
	"net/url"
	"testing"

	"github.com/Shopify/toxiproxy/v2"
	"github.com/rs/zerolog"

	"rabbitmq-rpc/test/internal/rig"
)

// Directions, as toxiproxy names them.
const (
	up   = "upstream"   // to the broker
	down = "downstream" // from the broker
)

// proxy is the path of some processes to the broker.
type proxy struct {
	t     testing.TB
	proxy *toxiproxy.Proxy
	url   string
}

// newProxy returns a proxy in front of the broker at amqpURL, which ends with the test.
func newProxy(t testing.TB, name, amqpURL string) *proxy {
	t.Helper()
	broker := ""
	rig.Rewrite(t, amqpURL, func(u *url.URL) { broker = u.Host })
	p := toxiproxy.NewProxy(toxiproxy.NewServer(toxiproxy.NewMetricsContainer(nil), zerolog.Nop()), name, "127.0.0.1:0", broker)
	if err := p.Start(); err != nil {
		t.Fatalf("proxy: %v", err)
	}
	t.Cleanup(p.Stop)
	return &proxy{t: t, proxy: p, url: rig.Rewrite(t, amqpURL, func(u *url.URL) { u.Host = p.Listen })}
}

// attributes of a toxic.
type attributes map[string]any

// poison adds a toxic in the given direction and returns a function to remove the toxic.
func (p *proxy) poison(kind, stream string, a attributes) (heal func()) {
	p.t.Helper()
	name := kind + "-" + stream
	text, err := json.Marshal(map[string]any{"name": name, "type": kind, "stream": stream, "attributes": a})
	if err != nil {
		p.t.Fatalf("toxic %s: %v", name, err)
	}
	if _, err := p.proxy.Toxics.AddToxicJson(bytes.NewReader(text)); err != nil {
		p.t.Fatalf("toxic %s: %v", name, err)
	}
	return func() {
		if err := p.proxy.Toxics.RemoveToxic(context.WithoutCancel(p.t.Context()), name); err != nil {
			p.t.Errorf("remove toxic %s: %v", name, err)
		}
	}
}

// cut closes every connection and refuses new connections until restore is called.
func (p *proxy) cut() (restore func()) {
	p.t.Helper()
	p.proxy.Stop()
	return func() {
		if err := p.proxy.Start(); err != nil {
			p.t.Errorf("proxy: %v", err)
		}
	}
}
