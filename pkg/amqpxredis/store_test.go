package amqpxredis

import (
	"strings"
	"testing"

	"github.com/redis/go-redis/v9"
	"go.uber.org/goleak"

	"rabbitmq-rpc/pkg/amqpx"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var _ amqpx.DedupStore = (*Store)(nil)

// TestClients: a client that would keep a server waiting beyond its deadlines is refused, of each type.
// The steps in Redis are tested with a server: test/integration.
func TestClients(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		make func(heeds bool) redis.UniversalClient
	}{
		"client": {func(heeds bool) redis.UniversalClient {
			return redis.NewClient(&redis.Options{Addr: "redis.test:6379", ContextTimeoutEnabled: heeds})
		}},
		"cluster": {func(heeds bool) redis.UniversalClient {
			return redis.NewClusterClient(&redis.ClusterOptions{Addrs: []string{"redis.test:6379"}, ContextTimeoutEnabled: heeds})
		}},
		"universal": {func(heeds bool) redis.UniversalClient {
			return redis.NewUniversalClient(&redis.UniversalOptions{Addrs: []string{"redis.test:6379"}, ContextTimeoutEnabled: heeds})
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for _, heeds := range []bool{true, false} {
				client := c.make(heeds)
				store, err := New(client, WithPrefix("test:"))
				switch {
				case heeds && (err != nil || store.prefix != "test:"):
					t.Errorf("got %+v, %v", store, err)
				case !heeds && (err == nil || !strings.Contains(err.Error(), "ContextTimeoutEnabled")):
					t.Errorf("got the error %v", err)
				}
				if err := client.Close(); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

func TestMistakes(t *testing.T) {
	t.Parallel()
	client := redis.NewClient(&redis.Options{Addr: "redis.test:6379", ContextTimeoutEnabled: true})
	defer func() { _ = client.Close() }()
	if _, err := New(nil); err == nil {
		t.Error("a nil client is no error")
	}
	if _, err := New(client, nil); err == nil || !strings.Contains(err.Error(), "option 1 is nil") {
		t.Errorf("a nil option: %v", err)
	}
	if store, err := New(client); err != nil || store.prefix != DefaultPrefix {
		t.Errorf("got %+v, %v", store, err)
	}
}

// TestForeignEntries: a hash of another program under a key is an error.
func TestForeignEntries(t *testing.T) {
	t.Parallel()
	for name, fields := range map[string][]any{
		"too few": {"owner"}, "no owner": {nil, "print", nil}, "no fingerprint": {"owner", nil, nil}, "a number": {int64(1), "print", nil},
	} {
		if e, err := entryOf(fields); err == nil {
			t.Errorf("%s: got %+v", name, e)
		}
	}
	if e, err := entryOf([]any{"owner", "print", "\x00"}); err != nil || string(e.Response) != "\x00" {
		t.Errorf("got %+v, %v", e, err)
	}
}
