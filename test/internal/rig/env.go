package rig

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"go.uber.org/goleak"
)

// Variables that describe the broker under test.
const (
	envURL        = "AMQPX_TEST_AMQP_URL"
	envManagement = "AMQPX_TEST_MANAGEMENT_URL"
	envMetrics    = "AMQPX_TEST_METRICS_URL"
	envTLSURL     = "AMQPX_TEST_AMQPS_URL"
	envStomp      = "AMQPX_TEST_STOMP"
	envCAFile     = "AMQPX_TEST_CA_FILE"
	envKind       = "AMQPX_TEST_BROKER_KIND"
	// envMajor is the RabbitMQ version, 3 or 4, of the brokers started by tests.
	envMajor = "AMQPX_TEST_BROKER_MAJOR"
)

// Main is the TestMain of every package here. It fails at once without a broker, and fails if
// a goroutine is left after the last test.
func Main(m *testing.M, opts ...goleak.Option) {
	for _, name := range []string{envURL, envManagement} {
		if os.Getenv(name) == "" {
			fmt.Fprintf(os.Stderr, "%s is not set: these tests need a RabbitMQ. One of their own comes from\n"+
				"  deploy/broker.sh up test && eval \"$(deploy/broker.sh env test)\"\n", name)
			os.Exit(1)
		}
	}
	goleak.VerifyTestMain(m, append(opts, goleak.Cleanup(func(code int) {
		atEnd.Lock()
		defer atEnd.Unlock()
		for _, f := range slices.Backward(atEnd.calls) {
			code = f(code)
		}
		os.Exit(code)
	}))...)
}

// atEnd holds the functions that Main calls after the last test.
//
//nolint:gochecknoglobals // what tests share ends with the process.
var atEnd struct {
	sync.Mutex
	calls []func(code int) int
}

// AtEnd registers f to be called by Main after the last test, in reverse order of
// registration. f receives the exit code and returns the new exit code.
func AtEnd(f func(code int) int) {
	atEnd.Lock()
	defer atEnd.Unlock()
	atEnd.calls = append(atEnd.calls, f)
}

// URL returns the AMQP URL of the broker under test.
func URL() string { return os.Getenv(envURL) }

// BrokerKind returns plain if brokers are processes of this machine, otherwise engine.
func BrokerKind() string { return os.Getenv(envKind) }

// ManagementURL returns the URL of the broker's management API and UI, with user and password.
func ManagementURL() string { return os.Getenv(envManagement) }

// MetricsURL returns the URL of the broker's plugin rabbitmq_prometheus. The variable is
// required only for suites that read the metrics.
func MetricsURL(t testing.TB) string {
	t.Helper()
	at := os.Getenv(envMetrics)
	if at == "" {
		t.Fatalf("%s is not set: where does the broker's plugin rabbitmq_prometheus listen?", envMetrics)
	}
	return at
}

// TLS returns the URL of the TLS listener of the broker under test, and the file with the
// authority's certificate for its clients. The variables are required only for tests of TLS.
func TLS(t testing.TB) (url, caFile string) {
	t.Helper()
	url, caFile = os.Getenv(envTLSURL), os.Getenv(envCAFile)
	if url == "" || caFile == "" {
		t.Fatalf("%s and %s are not set: where does the broker listen for TLS, and whom does a client trust?", envTLSURL, envCAFile)
	}
	return url, caFile
}

// Major returns the version of the brokers started by tests.
func Major() string {
	if v := os.Getenv(envMajor); v != "" {
		return v
	}
	return "3"
}

// Root returns the repository's root folder.
func Root(t testing.TB) string {
	t.Helper()
	gomod, err := exec.CommandContext(t.Context(), "go", "env", "GOMOD").Output()
	if err != nil {
		t.Fatalf("find the repository: %v", err)
	}
	return filepath.Dir(filepath.Dir(strings.TrimSpace(string(gomod))))
}

// Stomp returns the STOMP address of the broker under test. The variable is required only for
// suites that use STOMP.
func Stomp(t testing.TB) string {
	t.Helper()
	at := os.Getenv(envStomp)
	if at == "" {
		t.Fatalf("%s is not set: where does the broker's plugin rabbitmq_stomp listen?", envStomp)
	}
	return at
}
