package transport

import (
	"errors"
	"net"
	"slices"
	"strconv"
	"strings"
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
