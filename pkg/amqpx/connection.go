package amqpx

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"

	"rabbitmq-rpc/pkg/amqpx/internal/transport"
)

// Connection is the connection to the broker of all clients and servers of a process, of any number of
// queues. A Connection holds two AMQP connections, for publishing and for consuming, and a third as
// soon as its servers answer callers with direct reply-to or queries of the control plane. Each client
// and server has separate channels, so that a fault of a queue, a permission or a message affects only
// one client or server; after a lost connection all connect again together. All methods are safe for
// concurrent use.
type Connection struct {
	cfg   linkConfig
	board statusBoard
	mux   *transport.Mux
	// direct has the connection for what could end a connection, see server_side_connection.go.
	direct *transport.Mux

	mu      sync.Mutex
	closed  bool // no client or server is made any more
	clients map[*Client]struct{}
	servers map[*Server]struct{}

	stop    context.CancelFunc // ends the links
	stopped chan struct{}      // closed when the links have ended
}

// connectionBody bounds the bodies on channels that belong to no client or server.
const connectionBody = transport.MaxBatchBody

// Connect returns a connection to the broker at url, which may be a comma-separated list of the
// nodes of a cluster. It reports every fault of its arguments at once and does not wait for the
// broker: like [NewClient], it connects in the background and reconnects until Shutdown or Close.
// [Connection.WaitReady] waits for the broker.
func Connect(url string, opts ...ConnectionOption) (*Connection, error) {
	cfg := defaultLinkConfig(url)
	var faults []error
	for i, o := range opts {
		if o == nil {
			faults = append(faults, fmt.Errorf("option %d is nil", i+1))
			continue
		}
		o.applyConnection(&cfg)
	}
	if err := errors.Join(errors.Join(faults...), cfg.validate()); err != nil {
		return nil, fmt.Errorf("amqpx: connection: %w", err)
	}
	c := &Connection{cfg: cfg, clients: make(map[*Client]struct{}), servers: make(map[*Server]struct{}), stopped: make(chan struct{})}
	c.cfg.complete(transport.ContentLimits{MaxBody: connectionBody})
	c.mux = transport.NewMux(c.cfg.connections("connection", false, &c.board))
	c.direct = transport.NewMux(c.cfg.connections("connection direct", true, noStatus{}))
	ctx, stop := context.WithCancel(context.Background()) //nolint:forbidigo // a connection lives until Close, beyond any caller's context.
	c.stop = stop
	var links sync.WaitGroup
	links.Go(func() { c.mux.Run(ctx) }) // these goroutines end when stop is called; Close waits for them
	links.Go(func() { c.direct.RunWhenNeeded(ctx) })
	go func() {
		links.Wait()
		close(c.stopped)
	}()
	return c, nil
}

// NewClient returns a client on the connection. The options are those of the function [NewClient];
// an option that belongs to the connection ([ConnectionOption]) is an error, except a logger. After
// Shutdown or Close, NewClient returns [ErrClosed].
func (c *Connection) NewClient(opts ...ClientOption) (*Client, error) {
	if err := c.check(); err != nil {
		return nil, err
	}
	cfg, err := newClientConfigOn(c.settings(), opts)
	if err != nil {
		return nil, err
	}
	client, err := makeClient(cfg, c.removeClient)
	if err != nil {
		return nil, err
	}
	if !c.addClient(client) {
		client.stop()
		<-client.stopped
		return nil, connectionClosedError{}
	}
	return client, nil
}

// addClient records a new client. It returns false after Shutdown or Close.
func (c *Connection) addClient(client *Client) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.closed {
		c.clients[client] = struct{}{}
	}
	return !c.closed
}

// NewServer returns a server on the connection. The options are those of the function [NewServer];
// an option that belongs to the connection ([ConnectionOption]) is an error, except a logger. After
// Shutdown or Close, NewServer returns [ErrClosed].
func (c *Connection) NewServer(opts ...ServerOption) (*Server, error) {
	if err := c.check(); err != nil {
		return nil, err
	}
	cfg, err := newServerConfigOn(c.settings(), opts)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, connectionClosedError{}
	}
	server := makeServer(cfg)
	c.servers[server] = struct{}{}
	return server, nil
}

// settings returns the settings of a client or server on the connection.
func (c *Connection) settings() config {
	settings := defaultConfig(c.cfg)
	settings.shared = c
	return settings
}

func (c *Connection) removeClient(client *Client) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.clients, client)
}

func (c *Connection) removeServer(s *Server) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.servers, s)
}

// Status returns the status of the connection. A client or server is ready when its queues and
// consumers are ([Client.Status], [Server.Status]).
func (c *Connection) Status() Status {
	if c == nil || c.mux == nil {
		return Status{State: StateClosed, Err: errNoConnection}
	}
	return c.board.get()
}

// Watch is [Client.Watch] for the status of the connection.
func (c *Connection) Watch(ctx context.Context) <-chan Status {
	if c == nil || c.mux == nil {
		return closedBoard(errNoConnection).watchUntil(ctx)
	}
	return c.board.watchUntil(ctx)
}

// WaitReady waits until the connection to the broker is made. A fault that lasts until an operator
// acts is returned at once, as by [Client.WaitReady]. Clients and servers of the connection may be
// made before, and have a WaitReady for their queues.
func (c *Connection) WaitReady(ctx context.Context) error {
	if err := c.checkContext(ctx); err != nil {
		return err
	}
	err := c.board.waitReady(ctx)
	if errors.Is(err, ErrClosed) {
		return connectionClosedError{}
	}
	return err
}

// Shutdown ends the connection gracefully: the servers drain, as at the end of the context of
// [Server.Serve], with [WithDrainTimeout]; then the clients wait for their pending calls, which
// handlers that drain may still make; then the connections close. New clients and servers are
// refused at once with [ErrClosed], new calls when the servers have drained. When ctx ends first, Shutdown ends the rest like [Connection.Close] and
// returns ctx's error. The error also has what Shutdown of the servers returned. Further calls
// only wait.
func (c *Connection) Shutdown(ctx context.Context) error {
	if err := c.checkContext(ctx); err != nil {
		return err
	}
	clients, servers := c.refuse()
	err := forEach(servers, func(s *Server) error { return s.Shutdown(ctx) })
	err = errors.Join(err, forEach(clients, func(client *Client) error { return client.Shutdown(ctx) }))
	return errors.Join(err, c.end(ctx))
}

// Close ends the connection at once: the contexts of handlers are canceled, and their requests go
// to other servers; pending calls end with [ErrClosed]; the connections close. It returns when
// all goroutines of the connection, its clients and servers have ended, or ctx's error when ctx
// ends first. Further calls only wait.
func (c *Connection) Close(ctx context.Context) error {
	if err := c.checkContext(ctx); err != nil {
		return err
	}
	clients, servers := c.refuse()
	for _, s := range servers {
		s.Close()
	}
	err := forEach(clients, func(client *Client) error { return client.Close(ctx) })
	err = errors.Join(err, forEach(servers, func(s *Server) error { return s.awaitEnd(ctx) }))
	return errors.Join(err, c.end(ctx))
}

// refuse refuses further clients and servers, and returns the existing ones.
func (c *Connection) refuse() (clients []*Client, servers []*Server) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	for client := range c.clients {
		clients = append(clients, client)
	}
	for s := range c.servers {
		servers = append(servers, s)
	}
	return clients, servers
}

// end closes the connections.
func (c *Connection) end(ctx context.Context) error {
	c.stop()
	select {
	case <-c.stopped:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// forEach calls f for all at once and returns the errors when all calls have returned.
func forEach[T any](all []T, f func(T) error) error {
	faults := make([]error, len(all))
	var calls sync.WaitGroup
	for i, v := range all {
		calls.Go(func() { faults[i] = f(v) })
	}
	calls.Wait()
	return errors.Join(faults...)
}

var errNoConnection = errors.New("this Connection was not made by Connect")

// connectionClosedError is ErrClosed with the text for a connection.
type connectionClosedError struct{}

func (connectionClosedError) Error() string        { return "connection closed" }
func (connectionClosedError) Is(target error) bool { return target == ErrClosed }

// check returns an error if the connection was not made by Connect.
func (c *Connection) check() error {
	if c == nil || c.mux == nil {
		return misused(errNoConnection)
	}
	return nil
}

// checkContext is check, and returns an error if the context is nil.
func (c *Connection) checkContext(ctx context.Context) error {
	if err := c.check(); err != nil {
		return err
	}
	if ctx == nil {
		return misused(errNilContext)
	}
	return nil
}

// NetDial opens a network connection, like [net.Dialer.DialContext].
type NetDial = func(ctx context.Context, network, address string) (net.Conn, error)

// WithDialer sets the function that opens network connections, for a proxy, a tunnel, or a network
// in memory: (&net.Dialer{…}).DialContext, for example. It gets the network "tcp" and the host and
// port of the URL, is called for every attempt, for all connections of the process at once, and
// must return when ctx ends, which is after [WithDialTimeout] at the latest. TLS, if the URL wants
// it, is performed on what the function returns. The default is a [net.Dialer] without settings.
func WithDialer(dial NetDial) ConnectionOption {
	return linkOption(func(c *linkConfig) { c.netDial = dial })
}
