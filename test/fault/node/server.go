package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/redis/go-redis/v9"

	"rabbitmq-rpc/pkg/amqpx"
	"rabbitmq-rpc/pkg/amqpxredis"
	"rabbitmq-rpc/test/fault/internal/ledger"
	"rabbitmq-rpc/test/fault/internal/report"
)

// serve runs a server until SIGTERM.
func (n *node) serve(ctx context.Context, shared []amqpx.Option) error {
	s := report.Summary{Node: n.name, Fresh: measure()}
	var err error
	s.Counts, err = n.served(ctx, shared)
	s.Closed = settle(s.Fresh.Goroutines) // no reference to the server remains
	return errors.Join(err, n.summarize(s))
}

// served runs a server until SIGTERM and returns its counts.
func (n *node) served(ctx context.Context, shared []amqpx.Option) (amqpx.ServerStats, error) {
	opts := []amqpx.ServerOption{amqpx.WithDrainTimeout(n.drain)}
	for _, o := range shared {
		opts = append(opts, o)
	}
	if n.workers > 0 {
		opts = append(opts, amqpx.WithWorkers(n.workers))
	}
	if n.store != "" {
		client := redis.NewClient(&redis.Options{Addr: n.store, ContextTimeoutEnabled: true})
		defer func() { _ = client.Close() }()
		store, err := amqpxredis.New(client)
		if err != nil {
			return amqpx.ServerStats{}, err
		}
		opts = append(opts, amqpx.WithDedupStore(store), amqpx.WithDedupLease(n.lease))
	}
	server, err := amqpx.NewServer(n.url, opts...)
	if err != nil {
		return amqpx.ServerStats{}, err
	}
	if err := errors.Join(n.register(server), n.registerStreams(server)); err != nil {
		return amqpx.ServerStats{}, err
	}
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	states := server.Watch(context.WithoutCancel(ctx))
	over := make(chan struct{})
	var beside sync.WaitGroup
	beside.Go(func() { n.follow(states, over) })           // these end when over is closed, below
	beside.Go(func() { n.obey(stop, server.Close, over) }) //
	beside.Go(func() {                                     // ends when ready, or with ctx
		for st := range server.Watch(ctx) {
			if st.Ready() {
				n.say("ready")
				return
			}
		}
	})
	err = server.Serve(ctx)
	stop()
	close(over)
	beside.Wait()
	return server.Stats(), err
}

// obey stops the server gracefully at the first signal and at once at the second.
func (n *node) obey(gracefully, atOnce func(), over <-chan struct{}) {
	dies := func() {
		n.record(ledger.Entry{Kind: ledger.Dead, PID: os.Getpid()})
		atOnce()
	}
	for _, act := range []func(){gracefully, dies} {
		select {
		case <-n.signals:
			act()
		case <-over:
			return
		}
	}
}

// register adds the methods of the suite.
func (n *node) register(server *amqpx.Server) error {
	return errors.Join(
		server.Handle(ledger.Echo, n.recorded(echo)),
		server.Handle(ledger.Once, n.recorded(echo), amqpx.AtMostOnce()),
		server.Handle(ledger.Slow, n.recorded(slow)),
		server.Handle(ledger.Fail, n.recorded(fail)),
		server.Handle(ledger.Panic, n.recorded(func(context.Context, *amqpx.Request) ([]byte, error) {
			panic("as it was told")
		})),
		server.Handle(ledger.Kill, n.recorded(kill)),
		server.Handle(ledger.Flaky, n.recorded(flaky)),
		server.Handle(ledger.Everywhere, n.recorded(everywhere), amqpx.OnEveryServer()),
		server.Handle(ledger.Shared, n.recordedKey),
		server.Handle(ledger.Held, n.recordedKey),
	)
}

// recorded records the execution before the handler runs.
func (n *node) recorded(h amqpx.Handler) amqpx.Handler {
	return func(ctx context.Context, req *amqpx.Request) ([]byte, error) {
		id, _, _ := strings.Cut(string(req.Body), " ")
		n.record(ledger.Entry{
			Kind: ledger.Run, ID: id, Method: req.Method, Redelivered: req.Redelivered, PID: os.Getpid(),
		})
		return h(ctx, req)
	}
}

// recordedKey is the handler of requests with shared keys. It records the start of an execution and,
// unless the execution fails, its end.
func (n *node) recordedKey(ctx context.Context, req *amqpx.Request) ([]byte, error) {
	id, _ := req.Header[callHeader].(string)
	e := ledger.Entry{
		Kind: ledger.Run, At: time.Now(), ID: id, Method: req.Method, Key: req.IdempotencyKey,
		Redelivered: req.Redelivered, PID: os.Getpid(),
	}
	n.record(e)
	body, err := slow(ctx, req)
	if err != nil {
		return nil, err
	}
	body = fmt.Appendf(nil, "%s %d-%d", body, e.PID, n.executions.Add(1))
	e.Kind, e.Until, e.User, e.Sum = ledger.Done, time.Now(), req.User, ledger.Sum(body)
	n.record(e)
	return body, nil
}

func echo(_ context.Context, req *amqpx.Request) ([]byte, error) { return req.Body, nil }

// slow responds after the duration in the body's second word.
func slow(ctx context.Context, req *amqpx.Request) ([]byte, error) {
	words := strings.SplitN(string(req.Body), " ", 3)
	if len(words) < 2 {
		return nil, amqpx.Errorf(amqpx.CodeInvalidArgument, "no duration in %q", req.Body)
	}
	d, err := time.ParseDuration(words[1])
	if err != nil {
		return nil, amqpx.Errorf(amqpx.CodeInvalidArgument, "%w", err)
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return req.Body, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func fail(_ context.Context, req *amqpx.Request) ([]byte, error) {
	return nil, amqpx.Errorf(amqpx.CodeAborted, "%s", req.Body)
}

func flaky(_ context.Context, req *amqpx.Request) ([]byte, error) {
	if rand.IntN(4) == 0 {
		return nil, amqpx.Errorf(ledger.FlakyCode, "%s", req.Body)
	}
	return req.Body, nil
}

func everywhere(_ context.Context, req *amqpx.Request) ([]byte, error) {
	return fmt.Appendf(nil, "%s %d", req.Body, os.Getpid()), nil
}

func kill(ctx context.Context, _ *amqpx.Request) ([]byte, error) {
	if err := syscall.Kill(os.Getpid(), syscall.SIGKILL); err != nil {
		return nil, err
	}
	<-ctx.Done() // the signal is on its way
	return nil, ctx.Err()
}
