package transport

import (
	"errors"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

// parseTarget returns the broker of a valid URL.
func parseTarget(url string) Target {
	uri, err := amqp.ParseURI(url)
	if err != nil {
		return Target{URL: url, Address: "?"}
	}
	return Target{
		URL: url, Address: net.JoinHostPort(uri.Host, strconv.Itoa(uri.Port)), User: uri.Username, Vhost: uri.Vhost,
		External: slices.ContainsFunc(uri.AuthMechanism, func(m string) bool { return strings.EqualFold(m, "external") }),
	}
}

// parsed returns a URL as amqp091-go parses it.
func parsed(t *testing.T, url string) amqp.URI {
	t.Helper()
	uri, err := amqp.ParseURI(url)
	if err != nil {
		t.Fatal(err)
	}
	return uri
}

// errCut is the error of a write to a connection that the peer has closed.
var errCut = errors.New("write tcp 127.0.0.1:5672: broken pipe")

// brokenSocket returns the error of amqp091-go for a broken socket.
func brokenSocket() *amqp.Error {
	return &amqp.Error{Code: amqp.FrameError, Reason: "read tcp 127.0.0.1:5672: connection reset by peer"}
}

// settle waits until every goroutine of the bubble is blocked.
func settle() { synctest.Wait() }

// pass lets the bubble's virtual time advance by d.
func pass(d time.Duration) {
	<-time.NewTimer(d).C
	synctest.Wait()
}

func wantSame[T comparable](t *testing.T, what string, got, want T) {
	t.Helper()
	if got != want {
		t.Errorf("%s: %v, want %v", what, got, want)
	}
}

// WantIs fails the test unless err matches every target. The tests of package transport_test
// use WantIs and WantTexts too.
func WantIs(t *testing.T, err error, targets ...error) {
	t.Helper()
	for _, target := range targets {
		if !errors.Is(err, target) {
			t.Errorf("error %v does not match %v", err, target)
		}
	}
}

// WantTexts fails the test unless the text of err contains every text.
func WantTexts(t *testing.T, err error, texts ...string) {
	t.Helper()
	if err == nil {
		t.Fatal("no error")
	}
	for _, want := range texts {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q is not in %q", want, err.Error())
		}
	}
}

// stuckConn is a connection to a broker that responds to nothing until gone is closed, except to
// the opening of channels.
type stuckConn struct {
	Conn // nil: any other call is a mistake of the test

	gone      chan struct{}
	opensNone atomic.Bool
	abandoned atomic.Int32
	late      atomic.Int32 // methods that began after the end
}

func (c *stuckConn) Lease(ContentLimits) Conn { return c }

func (c *stuckConn) Channel() (Channel, error) {
	if c.opensNone.Load() {
		<-c.gone
		return nil, amqp.ErrClosed
	}
	return &stuckChannel{conn: c}, nil
}

type stuckChannel struct {
	Channel

	conn *stuckConn
}

func (c *stuckChannel) wait() error {
	select {
	case <-c.conn.gone:
		c.conn.late.Add(1)
	default:
	}
	<-c.conn.gone
	return amqp.ErrClosed
}

func (c *stuckChannel) Barrier() error     { return c.wait() }
func (c *stuckChannel) Confirm(bool) error { return c.wait() }
func (c *stuckChannel) IsClosed() bool     { return false }
func (c *stuckChannel) Abandon()           { c.conn.abandoned.Add(1) }

func (c *stuckChannel) Close() error {
	<-c.conn.gone
	return amqp.ErrClosed
}

func (c *stuckChannel) QueueDeclarePassive(string, bool, bool, bool, bool, amqp.Table) (amqp.Queue, error) {
	return amqp.Queue{}, c.wait()
}
