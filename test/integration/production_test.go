//go:build integration

package integration

import (
	"encoding/json"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/google/uuid"

	"rabbitmq-rpc/pkg/amqpx"
	"rabbitmq-rpc/test/internal/rig"
)

// The users in the definitions of these tests. The user client attacks, the user other is its
// victim.
const (
	asServer   = "server"
	asOperator = "operator"
	asClient   = "client"
	asOther    = "other"
)

// hardened is a broker with the settings of the overlay compose/production.yml, and with the shovel of
// the run book. The definitions are imported later, because each test has a virtual host of its own.
//
//nolint:gochecknoglobals // several tests share it.
var hardened = rig.SharedWithPlugins(hardenedConf(), "rabbitmq_shovel")

// hardenedConf returns the lines of the overlay's rabbitmq.conf without the import, and the maximum
// size of messages that docker-compose.yml sets.
func hardenedConf() string {
	content, err := os.ReadFile(filepath.Join("..", "..", "compose", "production", "rabbitmq.conf"))
	if err != nil {
		panic(err)
	}
	return regexp.MustCompile(`(?m)^load_definitions = .*$`).ReplaceAllString(string(content), "max_message_size = 16777216")
}

// users holds the folder of rpc-definitions, which the tests share, because users belong to the
// whole broker.
//
//nolint:gochecknoglobals // see above
var users struct {
	sync.Mutex
	folder, admin string
}

// production is a virtual host of a test with the definitions that rpc-definitions makes.
type production struct {
	t      *testing.T
	vhost  string
	broker *rig.Broker
	// folder has the folders of the users, as in the volumes of the overlay.
	folder string
	// management is the management API as an administrator whom only tests have.
	management *rig.Management
}

// inProduction makes a virtual host with the users and their permissions, with further arguments of
// rpc-definitions.
func inProduction(t *testing.T, args ...string) *production {
	t.Helper()
	p := &production{t: t, vhost: "production-" + uuid.NewString(), broker: hardened.For(t)}
	users.Lock()
	defer users.Unlock()
	if users.folder == "" {
		folder, err := os.MkdirTemp("", "production") //nolint:usetesting // all tests share the folder.
		if err != nil {
			t.Fatal(err)
		}
		rig.AtEnd(func(code int) int {
			_ = os.RemoveAll(folder)
			return code
		})
		users.folder, users.admin = folder, uuid.NewString()
		p.broker.Ctl("add_user", "admin-of-tests", users.admin)
		p.broker.Ctl("set_user_tags", "admin-of-tests", "administrator")
	}
	p.management = rig.ManageAt(t, rig.Node{ManagementURL: p.managementURL("admin-of-tests", users.admin)})
	p.importFrom(users.folder, nil, append([]string{"-clients", asClient + "," + asOther}, args...)...)
	t.Cleanup(func() { p.management.Do(http.MethodDelete, nil, nil, "vhosts", p.vhost) })
	return p
}

// importFrom runs rpc-definitions, imports the definitions into the broker after a change, and
// copies the files to the test's folder.
func (p *production) importFrom(folder string, change func(definitions map[string]any), args ...string) {
	p.t.Helper()
	host := ""
	rig.Rewrite(p.t, p.broker.URL, func(u *url.URL) { host = u.Host })
	program := rig.Run(p.t, nil, rig.Build(p.t, "rpc-definitions"),
		append([]string{"-folder", folder, "-queue", amqpx.DefaultQueue, "-vhost", p.vhost, "-broker", "amqp://" + host}, args...)...)
	if err := program.Wait(); err != nil {
		p.t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(folder, "broker", "definitions.json"))
	if err != nil {
		p.t.Fatal(err)
	}
	var definitions map[string]any
	if err := json.Unmarshal(text, &definitions); err != nil {
		p.t.Fatal(err)
	}
	if change != nil {
		change(definitions)
	}
	p.management.Do(http.MethodPost, definitions, nil, "definitions")
	p.folder = p.t.TempDir()
	if err := os.CopyFS(p.folder, os.DirFS(folder)); err != nil {
		p.t.Fatal(err)
	}
}

// managementURL returns the URL of the management API for a user.
func (p *production) managementURL(user, password string) string {
	p.t.Helper()
	return rig.Rewrite(p.t, p.broker.ManagementURL, func(u *url.URL) { u.User = url.UserPassword(user, password) })
}

// file returns the path of a user's file.
func (p *production) file(user, name string) string { return filepath.Join(p.folder, user, name) }

// url returns the URL of a user.
func (p *production) url(user string) string {
	p.t.Helper()
	text, err := os.ReadFile(p.file(user, "amqp-url"))
	if err != nil {
		p.t.Fatal(err)
	}
	return strings.TrimSpace(string(text))
}

// as returns a rig of a user, on the queue of the definitions.
func (p *production) as(user string) *rig.Rig {
	p.t.Helper()
	r := rig.Beyond(p.t, p.url(user))
	r.Queue.Name = amqpx.DefaultQueue
	return r
}

// overlay returns a number that compose/production.yml sets.
func overlay(t *testing.T, variable string) int {
	t.Helper()
	content, err := os.ReadFile(filepath.Join(rig.Root(t), "compose", "production.yml"))
	if err != nil {
		t.Fatal(err)
	}
	found := regexp.MustCompile(variable + `: \$\{` + variable + `:-(\d+)\}`).FindSubmatch(content)
	if found == nil {
		t.Fatalf("compose/production.yml does not set %s", variable)
	}
	n, err := strconv.Atoi(string(found[1]))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// serverEnvironment returns the environment of rpc-server in the overlay.
func (p *production) serverEnvironment() []string {
	p.t.Helper()
	env := append(p.environment(asServer),
		"RPC_AUTHORIZATION_FILE="+p.file(asServer, "authorization.json"), "RPC_REPLY_PREFIX={queue}.reply.{user}.")
	for _, variable := range []string{
		"RPC_PREFETCH", "RPC_QUEUE_MAX_LENGTH", "RPC_QUEUE_MAX_BYTES", "RPC_CALLER_MAX_CALLS", "RPC_CALLER_MAX_BYTES", "RPC_CALLER_MAX_RUNNING",
	} {
		env = append(env, variable+"="+strconv.Itoa(overlay(p.t, variable)))
	}
	return env
}

// environment returns the environment of both services in the overlay.
func (p *production) environment(user string) []string {
	return []string{
		"AMQP_URL_FILE=" + p.file(user, "amqp-url"), "RPC_QUEUE=" + amqpx.DefaultQueue,
		"HTTP_ADDR=127.0.0.1:0", "LOG_FORMAT=json",
	}
}

// TestProductionPrograms: rpc-server and rpc-client make all their calls with the files and the
// settings of the overlay.
func TestProductionPrograms(t *testing.T) {
	t.Parallel()
	p := inProduction(t)
	server := rig.Run(t, p.serverEnvironment(), rig.Build(t, "rpc-server"))
	server.Says(`"msg":"ready"`)
	for _, load := range [][]string{
		{"RPC_CALLS=1000"},
		{"RPC_CALLS=20000", "RPC_CONCURRENCY=64"},
		{"RPC_CALLS=2000", "RPC_CONCURRENCY=16", "RPC_BATCH=off"},
	} {
		client := rig.Run(t, append(p.environment(asClient), append(load, "RPC_EXCHANGE="+exchange)...), rig.Build(t, "rpc-client"))
		client.Says("every call was answered as expected")
		if err := client.Wait(); err != nil {
			t.Errorf("%v: the client ended with %v", load, err)
		}
	}
	server.Terminate()
	if err := server.Wait(); err != nil {
		t.Errorf("the server ended with %v", err)
	}
}
