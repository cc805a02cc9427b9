//go:build integration

package integration

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"rabbitmq-rpc/pkg/amqpx"
	"rabbitmq-rpc/test/internal/rig"
)

// oneConnection is a connection with servers and clients of several queues.
type oneConnection struct {
	t       *testing.T
	conn    *amqpx.Connection
	queues  []amqpx.Queue
	servers []*amqpx.Server
	clients []*amqpx.Client
}

// onOneConnection starts a server and a client for each of n queues on one connection, and waits until all
// are ready.
func onOneConnection(t *testing.T, url string, n int, methods rig.Methods, opts ...amqpx.ConnectionOption) *oneConnection {
	t.Helper()
	s := &oneConnection{t: t}
	for range n {
		s.queues = append(s.queues, rig.On(t, url).Queue)
	}
	conn, err := amqpx.Connect(url, opts...)
	if err != nil {
		t.Fatal(err)
	}
	s.conn = conn
	t.Cleanup(func() {
		if err := conn.Close(rig.Within(t, time.Minute)); err != nil && !errors.Is(err, context.Canceled) {
			t.Errorf("Close: %v", err)
		}
	})
	for _, q := range s.queues {
		queue := amqpx.WithQueue(q)
		server, err := conn.NewServer(queue)
		if err != nil {
			t.Fatal(err)
		}
		for name, h := range methods {
			if err := server.Handle(name, h); err != nil {
				t.Fatal(err)
			}
		}
		go func() { _ = server.Serve(context.WithoutCancel(t.Context())) }() // ends with the connection
		client, err := conn.NewClient(queue)
		if err != nil {
			t.Fatal(err)
		}
		s.servers, s.clients = append(s.servers, server), append(s.clients, client)
	}
	s.ready()
	return s
}

// ready waits until all servers and clients are ready.
func (s *oneConnection) ready() {
	s.t.Helper()
	for i := range s.servers {
		if err := errors.Join(s.servers[i].WaitReady(rig.Patience(s.t)), s.clients[i].WaitReady(rig.Patience(s.t))); err != nil {
			s.t.Fatal(err)
		}
	}
}

// call calls "echo" at every queue.
func (s *oneConnection) call() {
	s.t.Helper()
	for i, c := range s.clients {
		body := fmt.Appendf(nil, "call %d", i)
		if response, err := c.Call(rig.Patience(s.t), "echo", body); err != nil || !bytes.Equal(response, body) {
			s.t.Errorf("client %d: %q, %v", i, response, err)
		}
	}
}

// reconnects returns how often clients and servers have connected again, and whether each did as
// often.
func (s *oneConnection) reconnects() (n uint64, same bool) {
	n, same = s.clients[0].Stats().Reconnects, true
	for i := range s.clients {
		same = same && s.clients[i].Stats().Reconnects == n && s.servers[i].Stats().Reconnects == n
	}
	return n, same
}

func echoBody(_ context.Context, req *amqpx.Request) ([]byte, error) { return req.Body, nil }

// TestFiveServersAndFiveClientsOnTwoConnections: the broker lists two connections, and allows this
// user no third.
func TestFiveServersAndFiveClientsOnTwoConnections(t *testing.T) {
	t.Parallel()
	m := rig.Manage(t)
	tenant := m.Tenant()
	tenant.Grant(".*")
	tenant.LimitUser("max-connections", 2)
	s := onOneConnection(t, tenant.URL(), 5, rig.Methods{"echo": echoBody}, amqpx.WithName("five"))
	s.call()
	var listed []struct {
		Name       string `json:"name"`
		Properties struct {
			Name string `json:"connection_name"`
		} `json:"client_properties"`
	}
	rig.Eventually(t, "the broker lists the connections", func() bool {
		return m.Do(http.MethodGet, nil, &listed, "vhosts", tenant.Vhost, "connections") && len(listed) >= 2
	})
	if len(listed) != 2 {
		t.Errorf("%d connections: %v", len(listed), listed)
	}
	for _, c := range listed {
		if name := c.Properties.Name; name != "five connection publish" && name != "five connection consume" {
			t.Errorf("a connection with the name %q", name)
		}
	}
	if n, same := s.reconnects(); n != 0 || !same {
		t.Errorf("%d reconnects, the same for all: %v", n, same)
	}
}

// TestSharedConnectionIsLostOnce: all reconnect together, by one pair of new connections.
func TestSharedConnectionIsLostOnce(t *testing.T) {
	t.Parallel()
	r := rig.New(t)
	proxy := r.Proxy()
	var dials atomic.Int64
	s := onOneConnection(t, proxy.URL(), 5, rig.Methods{"echo": echoBody}, amqpx.WithDialer(func(ctx context.Context, network, address string) (net.Conn, error) {
		dials.Add(1)
		return new(net.Dialer).DialContext(ctx, network, address)
	}))
	s.call()
	if n := dials.Load(); n != 2 {
		t.Errorf("%d dials, want 2", n)
	}
	before := s.conn.Status().Generation
	proxy.Cut()
	for st := range s.conn.Watch(rig.Patience(t)) {
		if st.Ready() && st.Generation == before+1 {
			break
		}
	}
	rig.Eventually(t, "all have connected again", func() bool { n, same := s.reconnects(); return n == 1 && same })
	s.call()
	if n := dials.Load(); n != 4 {
		t.Errorf("%d dials, want 4", n)
	}
}

// TestFaultOfOneOfASharedConnection: a server without permissions, and a client whose queue was
// deleted, disturb nobody else.
func TestFaultOfOneOfASharedConnection(t *testing.T) {
	t.Parallel()
	m := rig.Manage(t)
	tenant := m.Tenant()
	tenant.Permit("^test[.].*", ".*", ".*")
	s := onOneConnection(t, tenant.URL(), 2, rig.Methods{"echo": echoBody})
	server, err := s.conn.NewServer(amqpx.WithQueue(amqpx.Queue{Name: "forbidden"}))
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve(context.WithoutCancel(t.Context())) }()
	err = server.WaitReady(rig.Patience(t))
	if amqpx.FaultOf(err) != amqpx.FaultPermission {
		t.Errorf("the server without permissions: %v", err)
	}
	m.Do(http.MethodDelete, nil, nil, "queues", tenant.Vhost, s.queues[0].Name)
	rig.Eventually(t, "the server has declared its queue again", func() bool { return s.servers[0].Stats().Reconnects == 1 })
	s.ready()
	s.call()
	if n := s.clients[0].Stats().Reconnects + s.clients[1].Stats().Reconnects + s.servers[1].Stats().Reconnects; n != 0 {
		t.Errorf("the others have reconnected %d times", n)
	}
	if err := server.Shutdown(rig.Patience(t)); err != nil {
		t.Error(err)
	}
	if err := <-served; err != nil {
		t.Error(err)
	}
}

// TestShutdownOfASharedConnection: a handler that drains calls another server of the same
// connection, and the call of an outside client succeeds.
func TestShutdownOfASharedConnection(t *testing.T) {
	t.Parallel()
	r := rig.New(t)
	backend := rig.New(t)
	backend.Serve(rig.Methods{"echo": echoBody})
	conn, err := amqpx.Connect(r.URL)
	if err != nil {
		t.Fatal(err)
	}
	client, err := conn.NewClient(amqpx.WithQueue(backend.Queue))
	if err != nil {
		t.Fatal(err)
	}
	server, err := conn.NewServer(amqpx.WithQueue(r.Queue))
	if err != nil {
		t.Fatal(err)
	}
	running, release := make(chan struct{}), make(chan struct{})
	err = server.Handle("hop", func(ctx context.Context, req *amqpx.Request) ([]byte, error) {
		close(running)
		<-release
		return client.Call(ctx, "echo", req.Body)
	})
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve(context.WithoutCancel(t.Context())) }()
	if err := errors.Join(server.WaitReady(rig.Patience(t)), client.WaitReady(rig.Patience(t))); err != nil {
		t.Fatal(err)
	}
	call := r.Client().Go(rig.Patience(t), "hop", []byte("two hops"))
	rig.Recv(t, running, "the handler runs")
	ended := make(chan error, 1)
	go func() { ended <- conn.Shutdown(rig.Patience(t)) }()
	for st := range server.Watch(rig.Patience(t)) {
		if st.State == amqpx.StateDraining {
			break
		}
	}
	close(release)
	if response, err := call.Wait(); err != nil || string(response) != "two hops" {
		t.Errorf("%q, %v", response, err)
	}
	if err := errors.Join(rig.Recv(t, ended, "Shutdown"), rig.Recv(t, served, "Serve")); err != nil {
		t.Error(err)
	}
	if st := conn.Status(); st.State != amqpx.StateClosed {
		t.Errorf("the connection is %v", st.State)
	}
}

// sharedWhileTheBrokerBlocks: during the alarm a client of a shared connection closes, and another
// is made, which waits for the end of the alarm.
func sharedWhileTheBrokerBlocks(t *testing.T, broker *rig.Broker) {
	t.Helper()
	s := onOneConnection(t, broker.URL, 2, rig.Methods{"echo": echoBody})
	s.call()
	broker.Ctl("set_vm_memory_high_watermark", "0.0001")
	lifted := false
	lift := func() {
		if !lifted {
			broker.Ctl("set_vm_memory_high_watermark", "0.9")
			lifted = true
		}
	}
	t.Cleanup(lift)
	call := s.clients[0].Go(rig.Patience(t), "echo", []byte("waits"), amqpx.Idempotent())
	for i := range s.clients {
		for st := range s.clients[i].Watch(rig.Patience(t)) {
			if st.State == amqpx.StateBlocked {
				break
			}
		}
	}
	begun := time.Now()
	if err := s.clients[1].Close(rig.Patience(t)); err != nil {
		t.Error(err)
	}
	if took := time.Since(begun); took > 5*time.Second {
		t.Errorf("the client took %v to close", took)
	}
	late, err := s.conn.NewClient(amqpx.WithQueue(s.queues[1]))
	if err != nil {
		t.Fatal(err)
	}
	if st := s.conn.Status(); st.State != amqpx.StateBlocked {
		t.Errorf("the connection is %v", st.State)
	}
	lift()
	if response, err := call.Wait(); err != nil || string(response) != "waits" {
		t.Errorf("%q, %v", response, err)
	}
	if err := late.WaitReady(rig.Patience(t)); err != nil {
		t.Error(err)
	}
	if n := s.clients[0].Stats().Reconnects + s.servers[0].Stats().Reconnects + s.servers[1].Stats().Reconnects; n != 0 {
		t.Errorf("%d reconnects", n)
	}
}
