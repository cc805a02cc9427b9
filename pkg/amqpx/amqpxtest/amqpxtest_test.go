package amqpxtest

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"rabbitmq-rpc/pkg/amqpx"
)

// pair is a client and a server on one broker.
type pair struct {
	broker *Broker
	client *amqpx.Client
	server *amqpx.Server
	drain  func() // ends the server
}

// start starts a server with the method "upper", and a client, and waits until both are ready.
// Call start inside a synctest bubble.
func start(t *testing.T) *pair {
	t.Helper()
	return startWith(t, "upper", func(_ context.Context, req *amqpx.Request) ([]byte, error) {
		return []byte(strings.ToUpper(string(req.Body))), nil
	})
}

// startWith is start with another method, and with options of the client. An option of the server
// too is one of both.
func startWith(t *testing.T, method string, handler amqpx.Handler, opts ...amqpx.ClientOption) *pair {
	t.Helper()
	broker := NewBroker()
	serverOptions, clientOptions := []amqpx.ServerOption{broker.Option()}, []amqpx.ClientOption{broker.Option()}
	for _, o := range opts {
		if both, ok := o.(amqpx.ServerOption); ok {
			serverOptions = append(serverOptions, both)
		}
		clientOptions = append(clientOptions, o)
	}
	server, err := amqpx.NewServer(URL, serverOptions...)
	if err != nil {
		t.Fatal(err)
	}
	if err := server.Handle(method, handler); err != nil {
		t.Fatal(err)
	}
	ctx, drain := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- server.Serve(ctx) }()
	client, err := amqpx.NewClient(URL, clientOptions...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		err := client.Close(context.Background())
		drain()
		if err := errors.Join(err, <-served); err != nil {
			t.Error(err)
		}
	})
	p := &pair{broker: broker, client: client, server: server, drain: drain}
	p.wait(t)
	return p
}

// wait waits until the client and the server are ready.
func (p *pair) wait(t *testing.T) {
	t.Helper()
	if err := errors.Join(p.server.WaitReady(t.Context()), p.client.WaitReady(t.Context())); err != nil {
		t.Fatal(err)
	}
}

// call calls "upper" and reports a wrong response.
func (p *pair) call(t *testing.T, text string) {
	t.Helper()
	response, err := p.client.Call(t.Context(), "upper", []byte(text), amqpx.WaitForServer())
	if err != nil || string(response) != strings.ToUpper(text) {
		t.Errorf("upper(%q) = %q, %v", text, response, err)
	}
}

func TestCalls(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := start(t)
		p.call(t, "alone")
		var calls sync.WaitGroup
		for i := range 200 {
			calls.Go(func() { p.call(t, fmt.Sprint("call ", i)) })
		}
		calls.Wait()
		if stats := p.client.Stats(); stats.OK != 201 || stats.Batched == 0 {
			t.Errorf("%d calls, %d of them in batches; want 201 and some", stats.OK, stats.Batched)
		}
	})
}

func TestDisconnectAndRestart(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(*Broker){"disconnect": (*Broker).Disconnect, "restart": (*Broker).Restart} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				p := start(t)
				p.call(t, "before")
				end(p.broker)
				synctest.Wait()
				if state := p.client.Status().State; state != amqpx.StateReconnecting {
					t.Errorf("the client is %v", state)
				}
				p.wait(t)
				p.call(t, "after")
				if client, server := p.client.Stats().Reconnects, p.server.Stats().Reconnects; client == 0 || server == 0 {
					t.Errorf("the client connected %d times again, the server %d times; want both", client, server)
				}
			})
		})
	}
}

func TestBlock(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := start(t)
		p.call(t, "before")
		p.broker.Block("low on disk")
		synctest.Wait()
		if status := p.client.Status(); status.State != amqpx.StateBlocked || !strings.Contains(fmt.Sprintf("%+v", status), "low on disk") {
			t.Errorf("the client's status is %+v", status)
		}
		blocked := time.Now()
		time.AfterFunc(time.Minute, p.broker.Unblock)
		p.wait(t)
		if took := time.Since(blocked); took != time.Minute {
			t.Errorf("ready after %v, want 1m0s", took)
		}
		p.call(t, "after")
	})
}

func TestReady(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := start(t)
		p.call(t, "with a server")
		p.drain()
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		call := p.client.Go(ctx, "upper", []byte("without"))
		synctest.Wait()
		if waiting := p.broker.Ready(amqpx.DefaultQueue); waiting != 1 {
			t.Errorf("%d requests in the queue, want 1", waiting)
		}
		<-call.Done()
		<-time.After(time.Second) // the request expires about when the call ends
		synctest.Wait()
		if waiting := p.broker.Ready(amqpx.DefaultQueue); waiting != 0 {
			t.Errorf("%d requests in the queue after the deadline, want 0", waiting)
		}
		if waiting := p.broker.Ready("no such queue"); waiting != 0 {
			t.Errorf("%d requests in a queue that does not exist", waiting)
		}
	})
}
