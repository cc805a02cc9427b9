package amqpx

import (
	"fmt"
	"testing"

	"rabbitmq-rpc/pkg/amqpx/internal/brokertest"
)

// The vectors of docs/protocol.md.
func TestShardOfAKey(t *testing.T) {
	t.Parallel()
	for key, want := range map[string][5]int{
		"":            {0, 1, 1, 1, 13},
		"a":           {0, 1, 2, 2, 12},
		"order-1001":  {0, 0, 0, 7, 8},
		"customer/42": {0, 1, 1, 1, 13},
		"ünïc":        {0, 1, 3, 3, 3},
	} {
		for i, shards := range []int{1, 2, 4, 8, 16} {
			wantSame(t, fmt.Sprintf("shard of %q with %d", key, shards), jump(fnv1a64([]byte(key)), shards), want[i])
		}
	}
}

func TestKeysSpreadEvenlyAndMoveOnlyIntoANewShard(t *testing.T) {
	t.Parallel()
	const keys, shards = 40_000, 4
	count, moved := make([]int, shards), 0
	for i := range keys {
		hash := fnv1a64(fmt.Appendf(nil, "key-%d", i))
		before, after := jump(hash, shards), jump(hash, shards+1)
		count[before]++
		if before != after {
			moved++
			wantSame(t, "shard of a moved key", after, shards)
		}
	}
	for i, n := range count {
		if n < keys/shards*95/100 || n > keys/shards*105/100 {
			t.Errorf("shard %d has %d of %d keys", i, n, keys)
		}
	}
	if want := keys / (shards + 1); moved < want*95/100 || moved > want*105/100 {
		t.Errorf("%d of %d keys moved, want about %d", moved, keys, want)
	}
}

func TestNamesOfShards(t *testing.T) {
	t.Parallel()
	q := Queue{Name: "q"}
	for name, owned := range map[string]bool{
		"q": true, "q.batch": true, "q.retry": true, "q.dead": true, "q.1": true, "q.63.batch": true,
		"q.0": false, "q.64": false, "q.01": false, "q.x": false, "q.retry.batch": false, "q.1.retry": false, "qq": false, "q.": false, "q.1.1": false,
	} {
		wantSame(t, name, q.owns(name), owned)
	}
	wantSame(t, "shard 0", q.shard(0).Name, "q")
	wantSame(t, "batch queue of shard 3", q.shard(3).batchQueue().Name, "q.3.batch")
}

func TestShardsAreValidated(t *testing.T) {
	t.Parallel()
	for _, n := range []int{0, -1, MaxShards + 1} {
		if _, err := NewClient(testURL, onBroker(brokertest.New()), WithShards(n)); err == nil {
			t.Errorf("a client with %d shards", n)
		}
		if _, err := NewServer(testURL, onBroker(brokertest.New()), WithShards(n)); err == nil {
			t.Errorf("a server with %d shards", n)
		}
	}
}
