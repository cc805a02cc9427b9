package rig

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
)

// Broker is a private RabbitMQ for tests with stops, kills or floods. It is removed with the
// test.
type Broker struct {
	t      testing.TB
	script string
	name   string
	env    []string // further variables for deploy/broker.sh
	// TLSURL is the URL of the TLS listener, and CAFile the certificate file for its clients.
	TLSURL, CAFile string
	// URL is the AMQP URL; restarts do not change it.
	URL string
	// ManagementURL is the URL of the management API, with user and password.
	ManagementURL string
}

// StartBroker starts a broker of the version in AMQPX_TEST_BROKER_MAJOR.
func StartBroker(t testing.TB) *Broker {
	t.Helper()
	return StartBrokerWith(t, "")
}

// StartBrokerWith is StartBroker with more lines for rabbitmq.conf.
func StartBrokerWith(t testing.TB, conf string) *Broker {
	t.Helper()
	return startBroker(t, newBroker(t, conf))
}

// StartBrokerWithPlugins is StartBrokerWith with more plugins, separated by commas.
func StartBrokerWithPlugins(t testing.TB, conf, plugins string) *Broker {
	t.Helper()
	b := newBroker(t, conf)
	b.env = append(b.env, "BROKER_PLUGINS="+plugins)
	return startBroker(t, b)
}

func startBroker(t testing.TB, b *Broker) *Broker {
	t.Helper()
	t.Cleanup(func() {
		ctx, cancel := afterwards(t)
		defer cancel()
		b.run(ctx, "down", b.name)
	})
	b.up()
	return b
}

// SharedBroker is a private RabbitMQ with settings for several tests. The first test starts
// the broker and Main removes it, so every test must restore the broker's state.
type SharedBroker struct {
	conf    string
	plugins string
	mu      sync.Mutex
	b       *Broker // nil until a test has started it
}

// Shared returns a broker with further lines for rabbitmq.conf. The broker starts at its first
// use.
func Shared(conf string) *SharedBroker { return &SharedBroker{conf: conf} }

// SharedWithPlugins is Shared with more plugins, separated by commas.
func SharedWithPlugins(conf, plugins string) *SharedBroker {
	return &SharedBroker{conf: conf, plugins: plugins}
}

// For returns the broker for a test.
func (s *SharedBroker) For(t testing.TB) *Broker {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.b == nil {
		b := newBroker(t, s.conf)
		b.env = append(b.env, "BROKER_PLUGINS="+s.plugins)
		afterAll := context.WithoutCancel(t.Context())
		AtEnd(func(code int) int {
			if _, err := b.try(afterAll, "down", b.name); err != nil {
				fmt.Fprintln(os.Stderr, err)
				return 1
			}
			return code
		})
		b.up()
		s.b = b
	}
	own := *s.b
	own.t = t
	return &own
}

// newBroker returns a broker before its start. Its name begins with the name of the broker
// under test, so deploy/with-broker.sh removes it in any case.
func newBroker(t testing.TB, conf string) *Broker {
	t.Helper()
	const short = 8
	return &Broker{
		t:      t,
		script: script(t),
		name:   cmp.Or(os.Getenv(envBroker), "test") + "-own-" + uuid.NewString()[:short],
		env:    []string{"BROKER_CONF=" + conf},
	}
}

// up starts the broker and reads its addresses.
func (b *Broker) up() {
	b.t.Helper()
	b.run(b.t.Context(), "up", b.name, Major())
	vars := b.run(b.t.Context(), "env", b.name)
	for name, value := range map[string]*string{envURL: &b.URL, envTLSURL: &b.TLSURL, envCAFile: &b.CAFile, envManagement: &b.ManagementURL} {
		found := regexp.MustCompile(name + `=(\S+)`).FindSubmatch(vars)
		if found == nil {
			b.t.Fatalf("deploy/broker.sh env does not say %s: %s", name, vars)
		}
		*value = string(found[1])
	}
}

// Do runs a command of deploy/broker.sh with only a name as argument: restart, stop, start,
// kill, pause, resume, disconnect, connect. Use during a test's cleanup is permitted.
func (b *Broker) Do(command string) {
	b.t.Helper()
	b.run(context.WithoutCancel(b.t.Context()), command, b.name)
}

// Ctl runs rabbitmqctl in the broker.
func (b *Broker) Ctl(args ...string) string {
	b.t.Helper()
	return string(b.run(context.WithoutCancel(b.t.Context()), append([]string{"ctl", b.name}, args...)...))
}

func (b *Broker) run(ctx context.Context, args ...string) []byte {
	b.t.Helper()
	out, err := b.try(ctx, args...)
	if err != nil {
		b.t.Fatal(err)
	}
	return out
}

func (b *Broker) try(ctx context.Context, args ...string) ([]byte, error) {
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, b.script, args...)
	cmd.Env = append(os.Environ(), b.env...)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	cmd.WaitDelay = time.Second // the broker may hold the pipes open
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("deploy/broker.sh %s: %w\n%s", args, err, stderr.Bytes())
	}
	return stdout.Bytes(), nil
}

// envBroker names the variable with the name of the broker under test, as used by
// deploy/broker.sh.
const envBroker = "AMQPX_TEST_BROKER"

// TheBroker returns the broker under test, for a suite with exclusive use.
func TheBroker(t testing.TB) *Broker {
	t.Helper()
	name := os.Getenv(envBroker)
	if name == "" {
		t.Fatalf("%s is not set: this suite stops and starts its broker, so it needs one of deploy/broker.sh", envBroker)
	}
	return &Broker{t: t, script: script(t), name: name, URL: URL()}
}

// script returns the path of deploy/broker.sh.
func script(t testing.TB) string {
	t.Helper()
	return filepath.Join(Root(t), "deploy", "broker.sh")
}
