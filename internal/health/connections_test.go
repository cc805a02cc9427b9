package health

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"rabbitmq-rpc/pkg/amqpx"
)

// Idle connections, before or between requests, do not lock out probes.
func TestConnectionsAreBounded(t *testing.T) {
	t.Parallel()
	s := start(t, "127.0.0.1:0", status{State: amqpx.StateReady})
	open := make([]net.Conn, 0, 2*maxConnections)
	for range cap(open) {
		conn, err := new(net.Dialer).DialContext(t.Context(), "tcp", s.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = conn.Close() }()
		open = append(open, conn)
	}
	if err := Check(context.WithoutCancel(t.Context()), s.Addr().String()); err != nil {
		t.Errorf("a probe beside %d connections: %v", len(open), err)
	}
	// The first connections had to be closed: a read ends at once, before the limit of 5 s for
	// a connection without a request.
	_ = open[0].SetReadDeadline(time.Now().Add(readLimit / 2))
	if _, err := open[0].Read(make([]byte, 1)); err == nil || strings.Contains(err.Error(), "timeout") {
		t.Errorf("the first of too many connections: %v, want its end", err)
	}
}

func TestOnlyConnectionsThatWaitGiveWay(t *testing.T) {
	t.Parallel()
	c := newConnections(2)
	conns := make([]net.Conn, 4)
	for i := range conns {
		ours, theirs := net.Pipe()
		defer func() { _, _ = ours.Close(), theirs.Close() }()
		conns[i] = ours
	}
	if c.change(conns[0], http.StateNew) != nil || c.change(conns[1], http.StateNew) != nil {
		t.Error("one of two connections was too many")
	}
	c.change(conns[0], http.StateActive)
	if got := c.change(conns[2], http.StateNew); got != conns[1] {
		t.Error("the connection that waits did not give way")
	}
	c.change(conns[1], http.StateClosed) // already removed
	c.change(conns[2], http.StateActive)
	if got := c.change(conns[3], http.StateNew); got != conns[3] {
		t.Error("a connection that is being answered gave way")
	}
	c.change(conns[0], http.StateIdle)
	if got := c.change(conns[3], http.StateNew); got != conns[0] {
		t.Error("the connection that is idle did not give way")
	}
	c.change(conns[0], http.StateActive) // a request that arrived just before the close
	if len(c.open) != 2 {
		t.Errorf("%d connections are known, want 2", len(c.open))
	}
}

func TestLargeHeadersAreRefused(t *testing.T) {
	t.Parallel()
	s := start(t, "127.0.0.1:0", status{State: amqpx.StateReady})
	conn, err := new(net.Dialer).DialContext(t.Context(), "tcp", s.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	_, _ = io.WriteString(conn, "GET /livez HTTP/1.1\r\nHost: h\r\nX: "+strings.Repeat("x", 1<<20)) // the server may stop reading
	response, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return // reset, because more was sent than was read
	}
	defer func() { _ = response.Body.Close() }()
	if response.StatusCode != http.StatusRequestHeaderFieldsTooLarge {
		t.Errorf("status %s", response.Status)
	}
}
