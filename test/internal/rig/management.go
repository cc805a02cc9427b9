package rig

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/google/uuid"
	amqp "github.com/rabbitmq/amqp091-go"
)

// Management is a client of a broker's management API.
type Management struct {
	t    testing.TB
	base string
}

// Manage returns the management API of the broker under test.
func Manage(t testing.TB) *Management {
	t.Helper()
	return &Management{t: t, base: ManagementURL()}
}

// Do makes one request; path elements are escaped. It reports whether the resource exists. Any
// other failure fails the test.
func (m *Management) Do(method string, body, into any, path ...string) bool {
	m.t.Helper()
	escaped := make([]string, len(path))
	for i, p := range path {
		escaped[i] = url.PathEscape(p)
	}
	return m.at(strings.Join(escaped, "/"), method, body, into)
}

// names returns the names of a list. It requests no other column, because RabbitMQ 3 then
// needs the statistics of every item and fails while a new item has none.
func (m *Management) names(path ...string) []string {
	m.t.Helper()
	for i, p := range path {
		path[i] = url.PathEscape(p)
	}
	var all []struct {
		Name string `json:"name"`
	}
	m.at(strings.Join(path, "/")+"?columns=name", http.MethodGet, nil, &all)
	names := make([]string, len(all))
	for i, item := range all {
		names[i] = item.Name
	}
	return names
}

// at makes one request to the path below /api/.
func (m *Management) at(path, method string, body, into any) bool {
	m.t.Helper()
	ctx, cancel := afterwards(m.t)
	defer cancel()
	target := strings.TrimSuffix(m.base, "/") + "/api/" + path
	payload, err := json.Marshal(body)
	if err != nil {
		m.t.Fatalf("management API: %v", err)
	}
	req, err := http.NewRequestWithContext(ctx, method, target, bytes.NewReader(payload))
	if err != nil {
		m.t.Fatalf("management API: %v", err)
	}
	req.Header.Set("Content-Type", "application/json")
	req.Close = true // an idle connection would look like a leak
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		m.t.Fatalf("management API: %v", err)
	}
	defer func() { _ = resp.Body.Close() }()
	response, err := io.ReadAll(resp.Body)
	if err != nil {
		m.t.Fatalf("management API: %v", err)
	}
	switch {
	case resp.StatusCode == http.StatusNotFound:
		return false
	case resp.StatusCode >= http.StatusMultipleChoices:
		m.t.Fatalf("management API: %s %s: %s: %s", method, path, resp.Status, response)
	case into != nil:
		if err := json.Unmarshal(response, into); err != nil {
			m.t.Fatalf("management API: %s %s: %v", method, path, err)
		}
	}
	return true
}

// Tenant is a virtual host and a user with access to it, removed with the test.
type Tenant struct {
	Vhost, User, Password string

	m *Management
}

// Tenant creates a virtual host, and a user without permissions yet.
func (m *Management) Tenant() *Tenant {
	m.t.Helper()
	vhost := "vhost-" + uuid.NewString()
	m.Do(http.MethodPut, map[string]any{}, nil, "vhosts", vhost)
	m.t.Cleanup(func() { m.Do(http.MethodDelete, nil, nil, "vhosts", vhost) })
	return m.userOf(vhost)
}

// Another creates another user of the same virtual host, without permissions yet.
func (n *Tenant) Another() *Tenant {
	n.m.t.Helper()
	return n.m.userOf(n.Vhost)
}

func (m *Management) userOf(vhost string) *Tenant {
	m.t.Helper()
	n := &Tenant{Vhost: vhost, User: "user-" + uuid.NewString(), Password: "pass-word-" + uuid.NewString(), m: m}
	m.Do(http.MethodPut, map[string]any{"password": n.Password, "tags": ""}, nil, "users", n.User)
	m.t.Cleanup(func() { m.Do(http.MethodDelete, nil, nil, "users", n.User) })
	return n
}

// Grant permits the user to configure resources that match the pattern, and to write and read
// all.
func (n *Tenant) Grant(configure string) {
	n.m.t.Helper()
	n.Permit(configure, ".*", ".*")
}

// Permit sets the user's permissions by patterns.
func (n *Tenant) Permit(configure, write, read string) {
	n.m.t.Helper()
	n.m.Do(http.MethodPut, map[string]string{"configure": configure, "write": write, "read": read}, nil,
		"permissions", n.Vhost, n.User)
}

// Revoke removes all the user's permissions on the virtual host.
func (n *Tenant) Revoke() {
	n.m.t.Helper()
	n.m.Do(http.MethodDelete, nil, nil, "permissions", n.Vhost, n.User)
}

// LimitVhost sets a limit of the virtual host, such as max-queues. A negative value removes
// the limit.
func (n *Tenant) LimitVhost(name string, value int) {
	n.m.t.Helper()
	n.m.limit(value, "vhost-limits", n.Vhost, name)
}

// LimitUser sets a limit of the user, such as max-channels. A negative value removes the
// limit.
func (n *Tenant) LimitUser(name string, value int) {
	n.m.t.Helper()
	n.m.limit(value, "user-limits", n.User, name)
}

func (m *Management) limit(value int, path ...string) {
	m.t.Helper()
	if value < 0 {
		m.Do(http.MethodDelete, nil, nil, path...)
		return
	}
	m.Do(http.MethodPut, map[string]int{"value": value}, nil, path...)
}

// Policy sets a policy for the queues that match the pattern, and removes the policy with the
// test.
func (m *Management) Policy(amqpURL, pattern string, definition map[string]any) {
	m.t.Helper()
	path := []string{"policies", vhostOf(m.t, amqpURL), "policy-" + uuid.NewString()}
	m.Do(http.MethodPut, map[string]any{"pattern": pattern, "apply-to": "queues", "definition": definition}, nil, path...)
	m.t.Cleanup(func() { m.Do(http.MethodDelete, nil, nil, path...) })
}

// URL returns the tenant's AMQP URL on the broker under test.
func (n *Tenant) URL() string { return n.URLWith(n.Password) }

// URLWith returns the tenant's URL with another password.
func (n *Tenant) URLWith(password string) string {
	return Rewrite(n.m.t, URL(), func(u *url.URL) {
		u.User = url.UserPassword(n.User, password)
		u.Path = "/" + n.Vhost
	})
}

// Rewrite changes parts of a URL.
func Rewrite(t testing.TB, raw string, change func(*url.URL)) string {
	t.Helper()
	u, err := url.Parse(raw)
	if err != nil {
		t.Fatalf("the broker's URL: %v", err)
	}
	change(u)
	return u.String()
}

// vhostOf returns the virtual host of an AMQP URL.
func vhostOf(t testing.TB, raw string) string {
	t.Helper()
	uri, err := amqp.ParseURI(raw)
	if err != nil {
		t.Fatalf("the broker's URL: %v", err)
	}
	return uri.Vhost
}

// Queues returns the names of the queues with the given prefix.
func (m *Management) Queues(amqpURL, prefix string) []string {
	m.t.Helper()
	return slices.DeleteFunc(m.names("queues", vhostOf(m.t, amqpURL)), func(name string) bool {
		return !strings.HasPrefix(name, prefix)
	})
}
