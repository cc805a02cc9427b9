package rig

import (
	"net"
	"syscall"
	"testing"

	"github.com/redis/go-redis/v9"

	"rabbitmq-rpc/pkg/amqpxredis"
)

// Redis is a redis-server without persistence. It is killed at the end of the test.
type Redis struct {
	// Address is the server's host and port.
	Address string

	t       testing.TB
	program *Program
}

// StartRedis starts a redis-server and waits until it accepts connections.
func StartRedis(t testing.TB) *Redis {
	t.Helper()
	s := &Redis{t: t, Address: FreeAddress(t, "127.0.0.1")}
	s.Start()
	return s
}

// Start starts the server, also again after Kill: its entries are gone then.
func (s *Redis) Start() {
	s.t.Helper()
	host, port, err := net.SplitHostPort(s.Address)
	if err != nil {
		s.t.Fatal(err)
	}
	s.program = Run(s.t, nil, "redis-server", "--bind", host, "--port", port, "--save", "", "--appendonly", "no", "--dir", s.t.TempDir())
	s.program.Says("Ready to accept connections")
}

// Kill ends the server with SIGKILL.
func (s *Redis) Kill() {
	s.t.Helper()
	s.program.Signal(syscall.SIGKILL)
	_ = s.program.Wait()
}

// Store returns a store of idempotency keys for one server of the library, with connections of its
// own, which end with the test.
func (s *Redis) Store() *amqpxredis.Store {
	s.t.Helper()
	client := redis.NewClient(&redis.Options{Addr: s.Address, ContextTimeoutEnabled: true})
	s.t.Cleanup(func() { _ = client.Close() })
	store, err := amqpxredis.New(client)
	if err != nil {
		s.t.Fatal(err)
	}
	return store
}
