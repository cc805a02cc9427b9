package transport

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

// Errors of brokers, recorded from RabbitMQ 3.10 and 4.0, and their classification.
func TestClassify(t *testing.T) {
	t.Parallel()
	told := func(code int, reason string) error {
		return fmt.Errorf("channel shutdown error: %w", &amqp.Error{Code: code, Reason: reason, Server: true})
	}
	for _, c := range []struct {
		name string
		err  error
		kind FaultKind
		text string
	}{
		{"refused", &net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}, FaultUnreachable, "no connection"},
		{"end of file", io.EOF, FaultUnreachable, "no connection"},
		{"name not found", &net.OpError{Op: "dial", Err: &net.DNSError{Name: "x", IsNotFound: true}}, FaultHostUnknown, "host name was not found"},
		{"timeout", errors.Join(context.DeadlineExceeded, net.ErrClosed), FaultNoAnswer, "no answer in time"},
		{"timeout of a queue", AtStep(StepDeclare, "q", errors.Join(context.DeadlineExceeded, net.ErrClosed)), FaultQueueSilent, `declare queue "q": the broker does not answer for queue "q"`},
		{"wrong password", amqp.ErrCredentials, FaultCredentials, `wrong user name or password for user "app"`},
		{"login refused", told(403, "ACCESS_REFUSED - Login was refused using authentication mechanism PLAIN. For details see the broker logfile."), FaultCredentials, `user "app"`},
		{"no mechanism", amqp.ErrSASL, FaultLoginMechanism, "no login mechanism"},
		{"vhost closed without a word", amqp.ErrVhost, FaultVhostClosed, `virtual host "/v" is closed to user "app"`},
		{"vhost missing", told(530, "NOT_ALLOWED - vhost limit not found"), FaultVhostMissing, `virtual host "/v" does not exist`},
		{"vhost closed", told(530, "NOT_ALLOWED - access to vhost 'limit' refused for user 'channels'"), FaultVhostClosed, `closed to user "app"`},
		{"vhost down", told(541, "INTERNAL_ERROR - access to vhost '/v' refused for user 'app': vhost '/v' is down"), FaultVhostDown, "is down"},
		{"limit of connections", told(530, "NOT_ALLOWED - access to vhost '/' refused for user 'guest': connection limit (1) is reached"), FaultConnectionLimit, "limit of connections"},
		{"limit of a user's connections", told(530, "NOT_ALLOWED - connection refused for user 'cu': user connection limit (0) is reached"), FaultConnectionLimit, "limit of connections"},
		{"limit of channels", told(530, "NOT_ALLOWED - number of channels opened for user 'cu' has reached the maximum allowed user limit of (3)"), FaultChannelLimit, "limit of channels"},
		{"limit of the node's channels", told(530, "NOT_ALLOWED - number of channels opened on node 'a@b' has reached the maximum allowed limit of (3)"), FaultChannelLimit, "limit of channels"},
		{"too few channels", amqp.ErrChannelMax, FaultChannelMax, "too few channels"},
		{"limit of consumers", told(530, "NOT_ALLOWED - reached maximum (1) of consumers per channel"), FaultConsumerLimit, "too few consumers"},
		{"limit of queues", AtStep(StepDeclare, "q", told(406, "PRECONDITION_FAILED - cannot declare queue 'q': queue limit in vhost '/' (0) is reached")), FaultQueueLimit, `queue "q"`},
		{"no permission, RabbitMQ 3", AtStep(StepConsume, "q", told(403, "ACCESS_REFUSED - access to queue 'q' in vhost '/' refused for user 'app'")), FaultPermission, `consume from queue "q": user "app" has no read permission`},
		{"no permission, RabbitMQ 4", AtStep(StepDeclare, "q", told(403, "ACCESS_REFUSED - configure access to queue 'q' in vhost '/' refused for user 'app'")), FaultPermission, `declare queue "q": user "app" has no configure permission`},
		{"in use", told(403, "ACCESS_REFUSED - queue 'x14' in vhost '/' in exclusive use"), FaultQueueInUse, `another consumer has queue "x14" for itself`},
		{"exclusive", told(405, "RESOURCE_LOCKED - cannot obtain exclusive access to locked queue 'q' in vhost '/'. It could be originally declared on another connection or the exclusive property value does not match that of the original declaration."), FaultQueueExclusive, `queue "q" belongs`},
		{"other properties", told(406, "PRECONDITION_FAILED - inequivalent arg 'durable' for queue 'q' in vhost '/': received 'true' but current is 'false'"), FaultQueueDiffers, `queue "q" exists with other properties`},
		{"properties of a stream", AtStep(StepDeclare, "q.dead", told(406, "PRECONDITION_FAILED - invalid arg 'x-overflow' for queue 'q.dead' in vhost 'ds' of queue type rabbit_stream_queue")), FaultQueueProperties, `no queue "q.dead"`},
		{"exchange of another program", told(406, "PRECONDITION_FAILED - inequivalent arg 'type' for exchange 'queue.control' in vhost '/': received 'fanout' but current is 'direct'"), FaultSetUpRefused, "refused the set-up"},
		{"refused otherwise", told(406, "PRECONDITION_FAILED - something"), FaultSetUpRefused, "refused the set-up"},
		{"not implemented", told(540, "NOT_IMPLEMENTED - queue.declare"), FaultNotImplemented, "does not know"},
		{"queue missing", told(404, "NOT_FOUND - no queue 'q' in vhost '/'"), FaultQueueMissing, `no queue "q"`},
		{"exchange missing", told(404, "NOT_FOUND - no exchange 'q.control' in vhost '/'"), FaultExchangeMissing, "no exchange"},
		{"node of the queue down", told(404, "NOT_FOUND - home node 'cl1@localhost' of durable queue 'q' in vhost '/' is down or inaccessible"), FaultQueueNodeDown, `the node that queue "q" lives on is down`},
		{"queue stopped", told(404, "NOT_FOUND - queue 'q' in vhost '/' process is stopped by supervisor"), FaultQueueStopped, `queue "q" has crashed`},
		{"queue crashed", told(404, "NOT_FOUND - queue 'q' in vhost '/' has crashed and failed to restart"), FaultQueueStopped, `queue "q" has crashed`},
		{"queue without majority", told(404, "NOT_FOUND - failed to perform operation on queue 'q' in vhost '/' due to timeout"), FaultQueueSilent, `does not answer for queue "q"`},
		{"quorum queue without majority", AtStep(StepConsume, "q", told(541, "INTERNAL_ERROR")), FaultQueueSilent, `does not answer for queue "q": its node is down, it has no majority, or it was stopped: channel shutdown error: Exception (541)`},
		{"stream", AtStep(StepDeclare, "q", errStream), FaultQueueStream, `queue "q" is a stream`},
		{"transient queues", told(541, "INTERNAL_ERROR - Feature `transient_nonexcl_queues` is deprecated.\nIts use is not permitted per the configuration"), FaultFeatureForbidden, "forbids a feature"},
		{"broker stops", told(320, "CONNECTION_FORCED - broker forced connection closure with reason 'shutdown'"), FaultBrokerClosed, "the broker closed the connection"},
		{"internal error", told(541, "INTERNAL_ERROR"), FaultBrokerInternal, "failed in itself"},
		{"broken socket", brokenSocket(), FaultConnectionLost, "the connection was lost"},
		{"frame too large", told(501, "FRAME_ERROR - frame too large"), FaultProtocol, "do not agree"},
		{"certificate", x509.UnknownAuthorityError{}, FaultBrokerCertificate, "TLS certificate was not accepted"},
		{"host name of the certificate", x509.HostnameError{Certificate: &x509.Certificate{}, Host: "h"}, FaultBrokerCertificate, "TLS certificate"},
		{"consumer cancelled", AtStep(StepConsume, "q", &consumerCanceledError{"t"}), FaultConsumerCanceled, `consume from queue "q": the broker ended the subscription`},
		{"no reason", ErrConnectionEnded, FaultConnectionLost, "the connection was lost"},
		{"deaf", errUnresponsive, FaultUnresponsive, "the broker does not answer"},
		{"nacks", &KindError{Kind: FaultMessagesNacked, Cause: errors.New("the queue is there and not full")}, FaultMessagesNacked, "nacks every message on this connection: the queue is there and not full"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			f := Classify(parseTarget("amqp://app:secret@host:1234/%2Fv"), c.err)
			text := f.Error()
			if !strings.HasPrefix(text, "broker host:1234: ") || !strings.Contains(text, c.text) || strings.Contains(text, "secret") || strings.Contains(text, "{") {
				t.Errorf("text %q: want the broker and %q in it, and no password", text, c.text)
			}
			wantSame(t, "kind", f.Kind, c.kind)
			some, every := needsOperator(f)
			wantSame(t, "needs operator", some, rowOf(c.kind).pace == paceSlow)
			wantSame(t, "needs only an operator", every, some)
			wantSame(t, "kind of the error", kindOf(f), c.kind)
			wantSame(t, "times that the words are said", strings.Count(text, f.words), 1)
		})
	}
}

// After the end of a ready connection the next attempt is quick, whatever the reason.
func TestClassifyEnd(t *testing.T) {
	t.Parallel()
	for reason, want := range map[string]FaultKind{
		"PRECONDITION_FAILED - delivery acknowledgement on channel 1 timed out. Timeout value used: 1800000 ms.": FaultAckTimeout,
		"PRECONDITION_FAILED - message size 200000 is larger than configured max size 65536":                     FaultMessageTooLarge,
		"PRECONDITION_FAILED - unknown delivery tag 7":                                                           FaultChannelClosed,
	} {
		f := classifyEnd(parseTarget("amqp://host"), AtStep(StepPublish, "", &amqp.Error{Code: 406, Reason: reason, Server: true}))
		wantSame(t, reason, f.Kind, want)
		wantSame(t, "pace after "+reason, f.pace, paceQuick)
	}
}

// The broker never gives the reason for a refused login; the kind follows from the target.
func TestRefusedLogin(t *testing.T) {
	t.Parallel()
	for url, want := range map[string]FaultKind{
		"amqp://app:secret@10.0.0.1":                  FaultCredentials,
		"amqp://guest:guest@10.0.0.1":                 FaultGuest,
		"amqp://guest:guest@localhost":                FaultCredentials,
		"amqp://guest:guest@127.1.2.3":                FaultCredentials,
		"amqp://guest:guest@[::1]:5672":               FaultCredentials,
		"amqps://10.0.0.1?auth_mechanism=external":    FaultCertificateUser,
		"amqps://10.0.0.1:1/?auth_mechanism=EXTERNAL": FaultCertificateUser,
	} {
		wantSame(t, url, Classify(parseTarget(url), amqp.ErrCredentials).Kind, want)
	}
}

func TestFaultsOfSeveralNodes(t *testing.T) {
	t.Parallel()
	ours, theirs := &ConnectionError{pace: paceSlow}, &ConnectionError{}
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
	wantSame(t, "text", (&ConnectionError{broker: "b", words: "p"}).Error(), "broker b: p")
}

func TestParseTarget(t *testing.T) {
	t.Parallel()
	for url, want := range map[string]Target{
		"amqps://h":                      {Address: "h:5671", User: "guest", Vhost: "/"},
		"amqp://u:p@[::1]:99/%2Fv%20w":   {Address: "[::1]:99", User: "u", Vhost: "/v w"},
		"amqp://a%40b:p%2Fq@h:1/":        {Address: "h:1", User: "a@b", Vhost: "/"},
		"no URL at all with secret:text": {Address: "?"},
	} {
		want.URL = url
		wantSame(t, url, parseTarget(url), want)
	}
}

// The texts of the same fault differ between attempts, for example by a local port or by the
// side that noticed the end first; the log shows the fault only once all the same.
func TestKindOfFaultLeavesOutTheCause(t *testing.T) {
	t.Parallel()
	a, b := parseTarget("amqp://a"), parseTarget("amqp://b")
	refused := func(port int) error { return fmt.Errorf("read 127.0.0.1:%d: connection refused", port) }
	one := errors.Join(Classify(a, refused(1)), Classify(b, amqp.ErrClosed))
	again := errors.Join(Classify(a, refused(2)), Classify(b, &amqp.Error{Code: amqp.FrameError, Reason: "EOF"}))
	if faultKey(one) != faultKey(again) {
		t.Errorf("%q is not %q", faultKey(one), faultKey(again))
	}
	if faultKey(one) == faultKey(Classify(a, amqp.ErrCredentials)) {
		t.Error("a wrong password is taken for a refused connection")
	}
}

// The log remembers a bounded number of faults, and forgets the oldest first.
func TestFaultLogForgetsTheOldest(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var l faultLog
		for i := range maxFaultsSaid + 1 {
			wantSame(t, "a new fault is logged", l.note(strconv.Itoa(i)), true)
			pass(time.Millisecond)
		}
		wantSame(t, "remembered", l.said.Len(time.Now()), maxFaultsSaid)
		wantSame(t, "the last fault is logged again at once", l.note(strconv.Itoa(maxFaultsSaid)), false)
		wantSame(t, "the first fault is logged again at once", l.note("0"), true)
	})
}
