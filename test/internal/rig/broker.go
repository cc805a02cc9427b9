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

// Broker is a private RabbitMQ that a test may stop, kill and fill. It is taken
// down with the test.
type Broker struct {
	t      testing.TB
	script string
	name   string
	env    []string // for deploy/broker.sh, beside that of the test
	// TLSURL is the URL of its TLS listener, and CAFile whom a client there has to trust.
	TLSURL, CAFile string
	// URL is its AMQP URL; it stays the same over restarts.
	URL string
}

// StartBroker starts a broker, of the version that AMQPX_TEST_BROKER_MAJOR names.
func StartBroker(t testing.TB) *Broker {
	t.Helper()
	return StartBrokerWith(t, "")
}

// StartBrokerWith is StartBroker with more lines for rabbitmq.conf.
func StartBrokerWith(t testing.TB, conf string) *Broker {
	t.Helper()
	b := newBroker(t, conf)
	t.Cleanup(func() {
		ctx, cancel := afterwards(t)
		defer cancel()
		b.run(ctx, "down", b.name)
	})
	b.up()
	return b
}

// SharedBroker is a private RabbitMQ with settings that several tests need. The first of
// them starts it and Main takes it down, so a test must leave it as it was.
type SharedBroker struct {
	conf string
	mu   sync.Mutex
	b    *Broker // nil until a test has started it
}

// Shared returns a broker that is started when it is first needed, with more lines for
// rabbitmq.conf.
func Shared(conf string) *SharedBroker { return &SharedBroker{conf: conf} }

// For returns the broker for one test.
func (s *SharedBroker) For(t testing.TB) *Broker {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.b == nil {
		b := newBroker(t, s.conf)
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

// newBroker returns a broker that is not started yet. Its name begins with that of the
// broker under test, with which deploy/with-broker.sh takes it down whatever happens.
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
	for name, value := range map[string]*string{envURL: &b.URL, envTLSURL: &b.TLSURL, envCAFile: &b.CAFile} {
		found := regexp.MustCompile(name + `=(\S+)`).FindSubmatch(vars)
		if found == nil {
			b.t.Fatalf("deploy/broker.sh env does not say %s: %s", name, vars)
		}
		*value = string(found[1])
	}
}

// Do runs one of the commands of deploy/broker.sh that take only a name: restart,
// stop, start, kill, pause, resume, disconnect, connect. It may also be used while a test cleans up.
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

// envBroker is the name that deploy/broker.sh knows the broker under test by.
const envBroker = "AMQPX_TEST_BROKER"

// TheBroker is the broker under test itself, for a suite that has it alone.
func TheBroker(t testing.TB) *Broker {
	t.Helper()
	name := os.Getenv(envBroker)
	if name == "" {
		t.Fatalf("%s is not set: this suite stops and starts its broker, so it needs one of deploy/broker.sh", envBroker)
	}
	return &Broker{t: t, script: script(t), name: name, URL: URL()}
}

// script is the path of deploy/broker.sh.
func script(t testing.TB) string {
	t.Helper()
	return filepath.Join(Root(t), "deploy", "broker.sh")
}
