// Package amqpxredis has a store of idempotency keys in Redis, which the servers of package amqpx
// share:
//
//	client := redis.NewClient(&redis.Options{Addr: "localhost:6379", ContextTimeoutEnabled: true})
//	store, err := amqpxredis.New(client)
//	server, err := amqpx.NewServer(url, amqpx.WithDedupStore(store))
//
// The store works with Redis 4 and later, Redis Cluster, and servers with the same protocol and
// scripts. An eviction (set maxmemory-policy noeviction), a restart without persistence, or a failover
// to a replica that lags behind loses entries: then another server may run a request again.
package amqpxredis

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/redis/go-redis/v9"

	"rabbitmq-rpc/pkg/amqpx"
)

// DefaultPrefix begins the names of the keys in Redis.
const DefaultPrefix = "amqpx:dedup:"

// Store is an [amqpx.DedupStore] in Redis, made by [New]. An entry is a hash with the fields "owner",
// "fingerprint" and, with a response, "response", and expires with its lease or age. Each method is
// one script for one key. Safe for concurrent use.
type Store struct {
	client redis.UniversalClient
	prefix string
}

// Option configures a [Store].
type Option func(*Store)

// WithPrefix sets how the names of the keys in Redis begin; the default is [DefaultPrefix]. Systems that
// share a Redis, such as staging and production, need different prefixes.
func WithPrefix(prefix string) Option { return func(s *Store) { s.prefix = prefix } }

// New returns a store that uses client. The caller sets addresses, TLS, passwords and timeouts of the
// client, and closes the client after the end of the servers. New does no I/O. It returns an error
// for a nil client or option, and for a client without ContextTimeoutEnabled, which would let a
// server wait for longer than its deadlines.
func New(client redis.UniversalClient, opts ...Option) (*Store, error) {
	if client == nil {
		return nil, errors.New("amqpxredis: the client is nil")
	}
	if !heedsContexts(client) {
		return nil, errors.New("amqpxredis: the client does not heed the deadlines of contexts: set ContextTimeoutEnabled in its options")
	}
	s := &Store{client: client, prefix: DefaultPrefix}
	for i, o := range opts {
		if o == nil {
			return nil, fmt.Errorf("amqpxredis: option %d is nil", i+1)
		}
		o(s)
	}
	return s, nil
}

// heedsContexts reports whether a client ends an operation when its context ends; also true for a type
// of another package.
func heedsContexts(client redis.UniversalClient) bool {
	switch c := client.(type) {
	case *redis.Client:
		return c.Options().ContextTimeoutEnabled
	case *redis.ClusterClient:
		return c.Options().ContextTimeoutEnabled
	case *redis.Ring:
		return c.Options().ContextTimeoutEnabled
	default:
		return true
	}
}

// The scripts, each one step with the entry in KEYS[1]. Redis runs a script alone. ARGV is owner,
// fingerprint, response and milliseconds, as far as the script needs them.
//
//nolint:gochecknoglobals // constant, with the hash of the text.
var (
	claimScript = redis.NewScript(`
local entry = redis.call('HMGET', KEYS[1], 'owner', 'fingerprint', 'response')
if not entry[1] then
	redis.call('HSET', KEYS[1], 'owner', ARGV[1], 'fingerprint', ARGV[2])
	entry = {ARGV[1], ARGV[2], false}
end
if entry[1] == ARGV[1] and not entry[3] then
	redis.call('PEXPIRE', KEYS[1], ARGV[3])
end
return entry`)
	completeScript = redis.NewScript(`
local owner = redis.call('HGET', KEYS[1], 'owner')
if owner and owner ~= ARGV[1] then
	return 0
end
redis.call('HSET', KEYS[1], 'owner', ARGV[1], 'fingerprint', ARGV[2], 'response', ARGV[3])
redis.call('PEXPIRE', KEYS[1], ARGV[4])
return 1`)
	releaseScript = redis.NewScript(`
local entry = redis.call('HMGET', KEYS[1], 'owner', 'response')
if entry[1] == ARGV[1] and not entry[2] then
	redis.call('DEL', KEYS[1])
end
return 1`)
)

// Claim implements [amqpx.DedupStore].
func (s *Store) Claim(ctx context.Context, key string, claim amqpx.DedupClaim, lease time.Duration) (amqpx.DedupEntry, error) {
	fields, err := claimScript.Run(ctx, s.client, []string{s.prefix + key}, claim.Owner, claim.Fingerprint, lease.Milliseconds()).Slice()
	if err != nil {
		return amqpx.DedupEntry{}, fmt.Errorf("amqpxredis: claim: %w", err)
	}
	return entryOf(fields)
}

// errEntry is the error of a key that another program has written.
var errEntry = errors.New("amqpxredis: the entry is none of this package")

// entryOf returns the entry in the result of the script.
func entryOf(fields []any) (e amqpx.DedupEntry, err error) {
	if len(fields) != 3 {
		return e, errEntry
	}
	owner, hasOwner := fields[0].(string)
	fingerprint, hasFingerprint := fields[1].(string)
	if !hasOwner || !hasFingerprint {
		return e, errEntry
	}
	e.DedupClaim = amqpx.DedupClaim{Owner: owner, Fingerprint: fingerprint}
	if response, ok := fields[2].(string); ok {
		e.Response = []byte(response)
	}
	return e, nil
}

// Complete implements [amqpx.DedupStore].
func (s *Store) Complete(ctx context.Context, key string, claim amqpx.DedupClaim, response []byte, age time.Duration) error {
	stored, err := completeScript.Run(ctx, s.client, []string{s.prefix + key}, claim.Owner, claim.Fingerprint, response, age.Milliseconds()).Bool()
	switch {
	case err != nil:
		return fmt.Errorf("amqpxredis: complete: %w", err)
	case !stored:
		return amqpx.ErrDedupClaimLost
	default:
		return nil
	}
}

// Release implements [amqpx.DedupStore].
func (s *Store) Release(ctx context.Context, key string, claim amqpx.DedupClaim) error {
	if err := releaseScript.Run(ctx, s.client, []string{s.prefix + key}, claim.Owner).Err(); err != nil {
		return fmt.Errorf("amqpxredis: release: %w", err)
	}
	return nil
}
