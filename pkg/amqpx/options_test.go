package amqpx

import (
	"fmt"
	"math"
	"strings"
	"testing"
	"time"
)

// badURLs are URLs that are refused; each holds the password.
func badURLs() []string {
	return []string{
		"http://app:secret@host/",
		"amqp://app:secret@host:port/",
		"amqp://app:sec ret@host/secret",
		"amqp://app:secret%zz@host/",
		"app:secret@host:5672",
		"://app:secret@host",
		"amqp://app:secret@[::1",
		"amqp://app:secret\x7f@host/",
	}
}

func TestBadURLIsNamedByItsPlaceWithoutItsPassword(t *testing.T) {
	t.Parallel()
	for _, u := range badURLs() {
		t.Run(u, func(t *testing.T) {
			t.Parallel()
			_, err := NewClient(testURL + "," + u)
			_, serverErr := NewServer(testURL + "," + u)
			for _, err := range []error{err, serverErr} {
				if err == nil {
					t.Fatal("accepted")
				}
				if text := err.Error(); !strings.Contains(text, "the second URL ") || strings.Contains(text, testPassword) {
					t.Errorf("text %q: want the URL's place in it and no password", text)
				}
			}
		})
	}
}

func TestPasswordWithACommaIsNotShown(t *testing.T) {
	t.Parallel()
	_, err := NewClient("amqp://app:sec,secret@host/")
	if err == nil || strings.Contains(err.Error(), testPassword) {
		t.Errorf("error %v: want one without the password", err)
	}
}

func TestClientFaultsAreNamedAllAtOnce(t *testing.T) {
	t.Parallel()
	_, err := NewClient(" , ",
		WithQueue(Queue{Name: strings.Repeat("q", 256), Type: QueueQuorum}),
		WithMaxMessageSize(0), WithHeartbeat(time.Millisecond), WithDialTimeout(0), WithWriteTimeout(-1),
		WithBackoff(0, -time.Second), WithReplyMode("pigeon"), WithTimeout(0), WithMaxInFlight(0),
		WithMaxInFlightBytes(-1), WithRetryBudget(math.NaN(), -1), WithMethod(""))
	wantTexts(t, err, "amqpx: client:", "no broker URL", "queue name of 256 bytes", "a quorum queue must be durable",
		"max message size 0", "heartbeat 1ms", "dial timeout 0s", "write timeout -1ns", "first backoff 0s",
		"backoff from 0s to -1s", `reply mode "pigeon"`, "timeout 0s: want more than 0", "max in flight 0",
		"max in flight -1 bytes: want at least the max message size 0", "retry ratio NaN", "retry burst -1", "method name of 0 bytes")
}

func TestServerFaultsAreNamedAllAtOnce(t *testing.T) {
	t.Parallel()
	_, err := NewServer("", WithQueue(Queue{Type: "stream"}), WithWorkers(-1), WithPrefetch(1<<16), WithDrainTimeout(0))
	wantTexts(t, err, "amqpx: server:", "no broker URL", "queue name of 0 bytes", `queue type "stream"`,
		"workers -1", "prefetch 65536", "drain timeout 0s")
}

func wantTexts(t *testing.T, err error, texts ...string) {
	t.Helper()
	if err == nil {
		t.Fatal("no error")
	}
	for _, want := range texts {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q is not in %q", want, err.Error())
		}
	}
}

func TestDefaultsAreValid(t *testing.T) {
	t.Parallel()
	c, err := newClientConfig("amqp://localhost", nil)
	if err != nil {
		t.Fatal(err)
	}
	wantSame(t, "queue", c.queue, Queue{Name: "rpc_queue", Type: QueueClassic, Durable: true})
	wantSame(t, "timeout", c.timeout, 30*time.Second)
	if _, ok := c.dialer.(netDialer); !ok {
		t.Errorf("dialer %T", c.dialer)
	}
	s, err := newServerConfig("amqp://localhost", nil)
	if err != nil {
		t.Fatal(err)
	}
	wantSame(t, "prefetch", s.prefetch, 2*DefaultWorkers)
}

func TestPrefetchFitsTheProtocol(t *testing.T) {
	t.Parallel()
	s, err := newServerConfig(testURL, []ServerOption{WithWorkers(60000)})
	if err != nil {
		t.Fatal(err)
	}
	wantSame(t, "prefetch", s.prefetch, 65535)
}

func TestURLListIsSplit(t *testing.T) {
	t.Parallel()
	c, err := newClientConfig(" amqp://a ,amqps://b/v,, ", nil)
	if err != nil {
		t.Fatal(err)
	}
	wantSame(t, "URLs", fmt.Sprint(c.urls), "[amqp://guest@a:5672 amqps://guest@b:5671]")
}

func TestOptionsOfOneClientDoNotReachAnother(t *testing.T) {
	t.Parallel()
	var order []string
	shared := []ClientOption{WithMiddleware(tag(&order, "a"), tag(&order, "b"), tag(&order, "c"))}
	first, _ := newClientConfig(testURL, append(shared, WithMiddleware(tag(&order, "d"))))
	second, _ := newClientConfig(testURL, append(shared, WithMiddleware(tag(&order, "e"))))
	_, _ = Chain(echo, first.middleware...)(t.Context(), &Request{})
	_, _ = Chain(echo, second.middleware...)(t.Context(), &Request{})
	wantSame(t, "order", strings.Join(order, ""), "abcdabce")
}

func TestNilLoggerLogsNothing(t *testing.T) {
	t.Parallel()
	if _, err := NewServer(testURL, WithLogger(nil)); err != nil {
		t.Error(err)
	}
}

func TestPortOutOfRangeIsRefused(t *testing.T) {
	t.Parallel()
	for _, port := range []string{"0", "65536"} {
		if _, err := NewServer("amqp://host:" + port); err == nil {
			t.Errorf("port %s is taken", port)
		}
	}
}
