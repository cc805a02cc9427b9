package amqpx

import (
	"fmt"
	"strconv"
)

// Shards. One queue is one process of the broker, so a logical request queue may consist of several
// queues: shard 0 is "<queue>", shard i is "<queue>.<i>", and each has a batch queue of its own. The
// client chooses the shard of a request; every server consumes every shard. docs/protocol.md describes
// the names and the choice.

const (
	// DefaultShards is one request queue.
	DefaultShards = 1
	// MaxShards is the largest number of request queues.
	MaxShards = 64
)

// WithShards sets the number of request queues, 1 to [MaxShards]; the default is [DefaultShards]. A
// server declares the queues "<queue>", "<queue>.1" to "<queue>.<n-1>", and consumes further such
// queues if they exist when it connects. A client distributes its calls over the n queues, in turn or
// by [WithShardKey].
//
// One queue carries about as many messages as one connection of a client, so several queues help if
// several clients and several servers share a queue that is busy all the time, and the broker has
// more than four processors. To raise the number, restart the servers first, then the clients. A
// queue that no client uses any more stays, and servers go on consuming it.
func WithShards(n int) Option { return option(func(c *config) { c.shards = n }) }

// WithShardKey makes a call use the shard of the key: calls with the same key use the same queue, as
// long as the client's number of shards ([WithShards]) stays the same. The key does not travel, and
// an empty key is no key. Calls with the same key may still run at the same time, in one server or in
// several. A call with a key waits for its shard where a call without a key uses another one.
func WithShardKey(key []byte) CallOption {
	hash, keyed := fnv1a64(key), len(key) > 0
	return func(c *callConfig) { c.shardHash, c.keyed = hash, keyed }
}

// fnv1a64 is the hash FNV-1a of 64 bits (draft-eastlake-fnv).
func fnv1a64(key []byte) uint64 {
	const start, prime = 0xcbf29ce484222325, 0x100000001b3
	h := uint64(start)
	for _, b := range key {
		h = (h ^ uint64(b)) * prime
	}
	return h
}

// jump returns the bucket of a hash, 0 to buckets-1: the jump consistent hash of Lamping and Veach
// (https://arxiv.org/abs/1406.2294). With one bucket more, a share of 1/(buckets+1) of the hashes
// moves, all of them into the new bucket.
func jump(hash uint64, buckets int) int {
	const multiplier, half = 2862933555777941757, 1 << 31
	bucket, next := int64(-1), int64(0)
	for next < int64(buckets) {
		bucket = next
		hash = hash*multiplier + 1
		next = int64(float64(bucket+1) * (float64(half) / float64(hash>>33+1)))
	}
	return int(bucket)
}

// shard returns the queue of a shard.
func (q Queue) shard(i int) Queue {
	if i > 0 {
		q.Name += "." + strconv.Itoa(i)
	}
	return q
}

// shardNumber returns the number of the shard whose name is q.Name and this suffix, if it is one.
func shardNumber(suffix string) (i int, ok bool) {
	if suffix == "" {
		return 0, true
	}
	i, err := strconv.Atoi(suffix[1:])
	return i, err == nil && i > 0 && i < MaxShards && suffix == "."+strconv.Itoa(i)
}

// validateShards reports a number of shards outside of the bounds.
func (c *config) validateShards() error {
	if c.shards < 1 || c.shards > MaxShards {
		return fmt.Errorf("shards %d: want 1 to %d", c.shards, MaxShards)
	}
	return nil
}
