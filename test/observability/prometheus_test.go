//go:build integration

package observability

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"testing"

	"rabbitmq-rpc/test/internal/rig"
)

// prometheus is a running server that ends with its test.
type prometheus struct {
	t    *testing.T
	base string
}

// startPrometheus starts Debian's Prometheus with settings from a file.
func startPrometheus(t *testing.T, settings string, flags ...string) *prometheus {
	t.Helper()
	server := rig.Run(t, nil, program(t, "prometheus"), append([]string{
		"--config.file=" + settings, "--storage.tsdb.path=" + t.TempDir(), "--web.listen-address=127.0.0.1:0",
	}, flags...)...)
	_, addr, said := strings.Cut(server.Says("Listening on"), "address=")
	if !said {
		t.Fatal("Prometheus does not say where it listens")
	}
	p := &prometheus{t: t, base: "http://" + addr}
	rig.Eventually(t, "Prometheus is ready", func() bool {
		_, code, err := p.get("/-/ready", nil)
		return err == nil && code == http.StatusOK
	})
	return p
}

// of returns the same server for a subtest.
func (p *prometheus) of(t *testing.T) *prometheus {
	t.Helper()
	return &prometheus{t: t, base: p.base}
}

func (p *prometheus) get(path string, params url.Values) ([]byte, int, error) {
	req, err := http.NewRequestWithContext(p.t.Context(), http.MethodGet, p.base+path+"?"+params.Encode(), http.NoBody)
	if err != nil {
		return nil, 0, err
	}
	req.Close = true // an idle connection would look like a leak
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, 0, err
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	return body, resp.StatusCode, err
}

// ask sends a query to the API, which must succeed.
func (p *prometheus) ask(into any, path string, params url.Values) {
	p.t.Helper()
	body, _, err := p.get("/api/v1/"+path, params)
	if err != nil {
		p.t.Fatalf("Prometheus: %v", err)
	}
	response := struct {
		Status, Error string
		Data          json.RawMessage
	}{}
	if err := json.Unmarshal(body, &response); err != nil {
		p.t.Fatalf("Prometheus: %s?%s: %v\n%s", path, params.Encode(), err, body)
	}
	if response.Status != "success" {
		p.t.Fatalf("Prometheus: %s %v: %s", path, params, response.Error)
	}
	if err := json.Unmarshal(response.Data, into); err != nil {
		p.t.Fatalf("Prometheus: %s %v: %v", path, params, err)
	}
}

// sample is an element of a query's result.
type sample struct {
	Metric    map[string]string
	Value     [2]any          // a time and a text
	Histogram json.RawMessage // instead of Value
}

// number returns the sample's value, or NaN if the value is not a number.
func (s sample) number() float64 {
	text, _ := s.Value[1].(string)
	v, err := strconv.ParseFloat(text, 64)
	if err != nil {
		return math.NaN()
	}
	return v
}

// query evaluates an expression now. An invalid expression fails the test.
func (p *prometheus) query(expr string) []sample {
	p.t.Helper()
	var response struct {
		ResultType string
		Result     []sample
	}
	p.ask(&response, "query", url.Values{"query": {expr}})
	if response.ResultType != "vector" {
		p.t.Fatalf("%s: is a %s", expr, response.ResultType)
	}
	return response.Result
}

// shows reports whether an expression has a value.
func (p *prometheus) shows(expr string) bool {
	p.t.Helper()
	for _, s := range p.query(expr) {
		if s.Histogram != nil || !math.IsNaN(s.number()) {
			return true
		}
	}
	return false
}

// value returns the only sample of an expression; ok is false without a sample.
func (p *prometheus) value(expr string) (v float64, ok bool) {
	p.t.Helper()
	switch all := p.query(expr); len(all) {
	case 0:
		return 0, false
	case 1:
		return all[0].number(), true
	default:
		p.t.Fatalf("%s: has %d results", expr, len(all))
		return 0, false
	}
}

// counts waits until an expression has the wanted value.
func (p *prometheus) counts(expr string, want float64) {
	p.t.Helper()
	last := "nothing"
	defer func() {
		if p.t.Failed() {
			p.t.Logf("%s: last it was %s", expr, last)
		}
	}()
	rig.Eventually(p.t, fmt.Sprintf("%s is %v", expr, want), func() bool {
		v, ok := p.value(expr)
		if ok {
			last = fmt.Sprint(v)
		}
		return ok && v == want
	})
}

// names returns the names of Prometheus's metrics with the prefix.
func (p *prometheus) names(prefix string) []string {
	p.t.Helper()
	var all, mine []string
	p.ask(&all, "label/__name__/values", nil)
	for _, name := range all {
		if strings.HasPrefix(name, prefix) {
			mine = append(mine, name)
		}
	}
	return mine
}
