package amqpx

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"syscall"
	"testing"

	amqp "github.com/rabbitmq/amqp091-go"
)

func TestClassify(t *testing.T) {
	t.Parallel()
	protocol := func(code int) error {
		return fmt.Errorf("channel shutdown error: %w", &amqp.Error{Code: code, Reason: "r"})
	}
	for _, c := range []struct {
		name     string
		err      error
		plain    string
		operator bool
	}{
		{"refused", &net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}, "no connection", false},
		{"end of file", io.EOF, "no connection", false},
		{"unexpected end of file", io.ErrUnexpectedEOF, "no connection", false},
		{"name not found", &net.OpError{Op: "dial", Err: &net.DNSError{Name: "x", IsNotFound: true}}, "host name was not found", false},
		{"timeout", errors.Join(context.DeadlineExceeded, net.ErrClosed), "no answer in time", false},
		{"wrong password", amqp.ErrCredentials, `wrong user name or password for user "app"`, true},
		{"no mechanism", amqp.ErrSASL, "no login mechanism", true},
		{"vhost", amqp.ErrVhost, `virtual host "/v" is missing or closed to user "app"`, true},
		{"vhost told late", protocol(amqp.NotAllowed), `virtual host "/v"`, true},
		{"no permission", protocol(amqp.AccessRefused), `no permission for user "app"`, true},
		{"other properties", protocol(amqp.PreconditionFailed), "refused the set-up", true},
		{"exclusive queue", protocol(amqp.ResourceLocked), "refused the set-up", true},
		{"not implemented", protocol(amqp.NotImplemented), "refused the set-up", true},
		{"queue missing", protocol(amqp.NotFound), "a queue is missing", false},
		{"broker stops", protocol(amqp.ConnectionForced), "the broker closed the connection", false},
		{"internal error", protocol(amqp.InternalError), "the link was lost", false},
		{"broken socket", brokenSocket(), "the link was lost", false},
		{"certificate", x509.UnknownAuthorityError{}, "TLS certificate was not accepted", true},
		{"host name of the certificate", x509.HostnameError{Certificate: &x509.Certificate{}, Host: "h"}, "TLS certificate", true},
		{"consumer cancelled", errConsumerCanceled, "the link was lost", false},
		{"no reason", errLinkEnded, "the link was lost", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			f := classify(parseTarget("amqp://app:secret@host:1234/%2Fv"), c.err)
			text := f.Error()
			if !strings.HasPrefix(text, "broker host:1234: ") || !strings.Contains(text, c.plain) || strings.Contains(text, testPassword) {
				t.Errorf("text %q: want the broker and %q in it, and no password", text, c.plain)
			}
			some, every := needsOperator(f)
			wantSame(t, "needs operator", some, c.operator)
			wantSame(t, "needs only an operator", every, c.operator)
			wantIs(t, f, c.err)
		})
	}
}

func TestFaultsOfSeveralNodes(t *testing.T) {
	t.Parallel()
	ours, theirs := &linkError{needsOperator: true}, &linkError{}
	for _, c := range []struct {
		name        string
		err         error
		some, every bool
	}{
		{"all", errors.Join(ours, ours), true, true},
		{"first", errors.Join(ours, theirs), true, false},
		{"last", errors.Join(theirs, ours), true, false},
		{"none", errors.Join(theirs, theirs), false, false},
		{"no fault of a link", io.EOF, false, false},
	} {
		some, every := needsOperator(c.err)
		wantSame(t, c.name, [2]bool{some, every}, [2]bool{c.some, c.every})
	}
}

func TestFaultWithoutCauseHasText(t *testing.T) {
	t.Parallel()
	wantSame(t, "text", (&linkError{broker: "b", plain: "p"}).Error(), "broker b: p")
}

func TestParseTarget(t *testing.T) {
	t.Parallel()
	for url, want := range map[string]brokerTarget{
		"amqps://h":                      {address: "h:5671", user: "guest", vhost: "/"},
		"amqp://u:p@[::1]:99/%2Fv%20w":   {address: "[::1]:99", user: "u", vhost: "/v w"},
		"amqp://a%40b:p%2Fq@h:1/":        {address: "h:1", user: "a@b", vhost: "/"},
		"no URL at all with secret:text": {address: "?"},
	} {
		want.url = url
		wantSame(t, url, parseTarget(url), want)
	}
}

// The texts of one fault differ from attempt to attempt, by a local port or by which
// side of the link noticed first; the log tells it once all the same.
func TestKindOfFaultLeavesOutTheCause(t *testing.T) {
	t.Parallel()
	a, b := parseTarget("amqp://a"), parseTarget("amqp://b")
	refused := func(port int) error { return fmt.Errorf("read 127.0.0.1:%d: connection refused", port) }
	one := errors.Join(classify(a, refused(1)), classify(b, amqp.ErrClosed))
	again := errors.Join(classify(a, refused(2)), classify(b, &amqp.Error{Code: amqp.FrameError, Reason: "EOF"}))
	if kindOfFault(one) != kindOfFault(again) {
		t.Errorf("%q is not %q", kindOfFault(one), kindOfFault(again))
	}
	if kindOfFault(one) == kindOfFault(classify(a, amqp.ErrCredentials)) {
		t.Error("a wrong password is taken for a refused connection")
	}
}
