package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/zap"

	"rabbitmq-rpc/pkg/amqpx"
)

func file(t *testing.T, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

//nolint:paralleltest // sets the environment
func TestAMQPDefaultsAreTheLibrarys(t *testing.T) {
	var a AMQP
	isolate(t, &a)
	if faults := load(t, &a); faults != nil {
		t.Fatalf("faults: %q", faults)
	}
	if a.Heartbeat != amqpx.DefaultHeartbeat || a.DialTimeout != amqpx.DefaultDialTimeout ||
		a.WriteTimeout != amqpx.DefaultWriteTimeout || a.BackoffMin != amqpx.DefaultBackoffMin ||
		a.BackoffMax != amqpx.DefaultBackoffMax {
		t.Errorf("the defaults differ from the library's: %+v", a)
	}
	if a.URL != "amqp://guest:guest@localhost:5672" {
		t.Errorf("URL is %s", a.URL)
	}
	if n := len(a.Options("test", zap.NewNop())); n != 8 {
		t.Errorf("%d options without TLS, want 8", n)
	}
}

func TestAMQPURL(t *testing.T) {
	const noURL = "AMQP_URL: the URL is not of the form amqp://user:password@host:5672/vhost" +
		", with special characters of the password percent-encoded"
	const noScheme = "AMQP_URL: the URL does not begin with amqp:// or amqps://"
	for _, c := range []struct{ value, want string }{
		{"amqp://h", ""},
		{"amqps://u:p@[::1]:5671/vhost", ""},
		{"amqp://a/,amqp://b/,", ""},
		{"", "AMQP_URL: is empty; unset it for the default or give it a value"},
		{" , ", "AMQP_URL: no broker URL"},
		{"http://u:hunter2@h/", noScheme},
		{"hunter2", noScheme},
		{"amqp://u:hunter2@/", "AMQP_URL: the URL names no host"},
		{"amqp://u:hunter2@h:0/", "AMQP_URL: the URL has a port outside 1 to 65535"},
		{"amqp://u:hunter2@h:70000/", "AMQP_URL: the URL has a port outside 1 to 65535"},
		{"amqp://u:hunter2@h:port/", "AMQP_URL: the URL has no number as its port; in a password / is written %2F, and an @ stands before the host, as in amqp://user:password@host:5672/vhost"},
		{"amqp://u:hunter%2@h/", noURL},
		{
			"amqps://u:hunter2@a/,amqp://u:hunter2@b/", "AMQP_URL: the first URL begins with amqps:// and the second URL with amqp://, " +
				"so the password could travel without TLS; begin every URL with amqps://",
		},
		{
			"amqp://a/,http://u:hunter2@b/,amqp:///", "AMQP_URL: the second URL does not begin with amqp:// or amqps://" +
				"; each broker of a list has a whole URL, as in amqp://user:password@host1/vhost,amqp://user:password@host2/vhost" +
				", and a comma in a password is written %2C; the third URL names no host",
		},
	} {
		t.Run(c.value, func(t *testing.T) {
			var a AMQP
			isolate(t, &a)
			t.Setenv("AMQP_URL", c.value)
			got := strings.Join(load(t, &a), "|")
			if got != c.want {
				t.Errorf("got  %q\nwant %q", got, c.want)
			}
			if strings.Contains(got, "hunter") {
				t.Error("the fault shows the password")
			}
		})
	}
}

func TestAMQPURLFile(t *testing.T) {
	good := file(t, "amqp://u:p@secret/\n")
	empty := file(t, "\n")
	bad := file(t, "http://u:hunter2@secret/\n")
	const missing = "/nonexistent/url"
	for name, c := range map[string]struct{ url, file, want, effective string }{
		"wins over the default": {"", good, "", "amqp://u:p@secret/"},
		"unset":                 {"amqp://h/", "", "", "amqp://h/"},
		"both":                  {"amqp://h/", good, "AMQP_URL_FILE: is set together with AMQP_URL; set only one of them", "amqp://h/"},
		"no file":               {"", os.DevNull, "AMQP_URL_FILE: /dev/null is not an ordinary file", ""},
		"missing":               {"", missing, "AMQP_URL_FILE: no such file or directory", ""},
		"empty":                 {"", empty, "AMQP_URL_FILE: " + empty + " is empty", ""},
		"no AMQP URL":           {"", bad, "AMQP_URL_FILE: the URL does not begin with amqp:// or amqps://", ""},
	} {
		t.Run(name, func(t *testing.T) {
			var a AMQP
			isolate(t, &a)
			t.Setenv("AMQP_URL", c.url)
			t.Setenv("AMQP_URL_FILE", c.file)
			if got := strings.Join(load(t, &a), "|"); got != c.want {
				t.Errorf("got  %q\nwant %q", got, c.want)
			}
			if c.effective != "" && a.URL.Reveal() != c.effective {
				t.Errorf("URL is %q, want %q", a.URL.Reveal(), c.effective)
			}
		})
	}
}

func TestAMQPURLFileWithoutAMQPURL(t *testing.T) {
	var a AMQP
	isolate(t, &a)
	t.Setenv("AMQP_URL_FILE", file(t, "amqp://u:p@secret/"))
	if faults := load(t, &a); faults != nil {
		t.Fatalf("faults: %q", faults)
	}
	if got := a.URL.Reveal(); got != "amqp://u:p@secret/" {
		t.Errorf("URL is %q", got)
	}
}

func TestAMQPBackoffOrder(t *testing.T) {
	var a AMQP
	isolate(t, &a)
	t.Setenv("AMQP_BACKOFF_MIN", "11s")
	want := "AMQP_BACKOFF_MAX: 10s is less than AMQP_BACKOFF_MIN, 11s"
	if got := strings.Join(load(t, &a), "|"); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestQueueFaults(t *testing.T) {
	for _, c := range []struct{ name, value, quorum, want string }{
		{"RPC_QUEUE", "amq.mine", "classic", "RPC_QUEUE: begins with amq., which the broker reserves"},
		{"RPC_QUEUE", strings.Repeat("q", 201), "classic", "RPC_QUEUE: has 201 bytes, more than 200"},
		{"RPC_QUEUE_DURABLE", "false", "quorum", "RPC_QUEUE_DURABLE: is false, but a quorum queue is always durable"},
		{"RPC_QUEUE_DURABLE", "false", "classic", ""},
		{"RPC_QUEUE_DURABLE", "true", "stream", `RPC_QUEUE_TYPE: the value is not one of: classic, quorum`},
	} {
		t.Run(c.name+"="+c.value+" "+c.quorum, func(t *testing.T) {
			var q Queue
			isolate(t, &q)
			t.Setenv("RPC_QUEUE_TYPE", c.quorum)
			t.Setenv(c.name, c.value)
			if got := strings.Join(load(t, &q), "|"); got != c.want {
				t.Errorf("got  %q\nwant %q", got, c.want)
			}
			if len(q.Options()) != 6 {
				t.Error("options are missing")
			}
		})
	}
}
