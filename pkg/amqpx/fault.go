package amqpx

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"strings"

	amqp "github.com/rabbitmq/amqp091-go"
)

// linkError is why an attempt failed or a link ended, in words an operator can act
// on. It never holds a URL with a password.
type linkError struct {
	broker string // host:port
	plain  string
	// needsOperator is true when trying again cannot help until somebody changes
	// the configuration, here or on the broker. Such a fault is retried slowly.
	needsOperator bool
	cause         error
}

func (f *linkError) Error() string {
	if f.cause == nil {
		return fmt.Sprintf("broker %s: %s", f.broker, f.plain)
	}
	return fmt.Sprintf("broker %s: %s: %v", f.broker, f.plain, f.cause)
}

func (f *linkError) Unwrap() error { return f.cause }

// needsOperator reports whether any of the faults joined in err, and whether every
// one, is a fault of configuration.
func needsOperator(err error) (some, every bool) {
	faults := []error{err}
	if nodes, ok := err.(interface{ Unwrap() []error }); ok {
		faults = nodes.Unwrap()
	}
	every = true
	for _, e := range faults {
		var f *linkError
		operator := errors.As(e, &f) && f.needsOperator
		some, every = some || operator, every && operator
	}
	return some, every
}

// kindOfFault names what the faults joined in err have in common with the same ones
// a moment later: not their causes, which hold port numbers.
func kindOfFault(err error) string {
	faults := []error{err}
	if nodes, ok := err.(interface{ Unwrap() []error }); ok {
		faults = nodes.Unwrap()
	}
	var kinds []string
	for _, e := range faults {
		if f, ok := errors.AsType[*linkError](e); ok {
			kinds = append(kinds, f.broker+": "+f.plain)
		}
	}
	return strings.Join(kinds, "; ")
}

// classify turns the error of one attempt, or the end of one link, into a
// linkError.
func classify(target brokerTarget, err error) *linkError {
	f := &linkError{broker: target.address, cause: target.redact(err)}
	var (
		protocol *amqp.Error
		dns      *net.DNSError
		unknown  x509.UnknownAuthorityError
		hostname x509.HostnameError
		verify   *tls.CertificateVerificationError
	)
	stream, isStream := errors.AsType[*streamError](err)
	switch {
	case isStream:
		f.plain, f.needsOperator, f.cause = stream.Error(), true, nil
	case errors.Is(err, context.DeadlineExceeded):
		// First, because calls on a link that was cut in time report a protocol error.
		f.plain = "no answer in time"
	case errors.As(err, &protocol):
		f.plain, f.needsOperator = explainProtocol(target, protocol)
	case errors.As(err, &verify), errors.As(err, &unknown), errors.As(err, &hostname):
		f.plain, f.needsOperator = "the TLS certificate was not accepted", true
	case errors.As(err, &dns):
		// Under an orchestrator a broker that was not started yet has no name, so
		// even "no such host" is worth a quick retry.
		f.plain = "the host name was not found"
	case errors.Is(err, errReplyQueueSilent):
		f.plain = "no answer in time"
	case errors.Is(err, errConsumerCanceled), errors.Is(err, errLinkEnded), errors.Is(err, errDeaf):
		f.plain = "the link was lost"
	default:
		f.plain = "no connection"
	}
	return f
}

// classifyEnd is classify for the end of a link that was ready. Its set-up was accepted,
// so the next attempt need not wait for an operator: if one is needed, it will say so.
func classifyEnd(target brokerTarget, err error) *linkError {
	f := classify(target, err)
	f.needsOperator = false
	if refused, ok := errors.AsType[*amqp.Error](err); ok && refused.Code == amqp.PreconditionFailed {
		f.plain = "the broker closed a channel"
	}
	return f
}

// explainProtocol words the reply codes of AMQP 0-9-1 section 1.8.2 and says
// whether an operator is needed. The library reports a login that the broker
// ended without a word as ErrCredentials.
func explainProtocol(target brokerTarget, err *amqp.Error) (plain string, operator bool) {
	switch {
	case err == amqp.ErrCredentials:
		return fmt.Sprintf("wrong user name or password for user %q", target.user), true
	case err == amqp.ErrSASL:
		return "the broker offers no login mechanism that the URL allows", true
	case err.Code == amqp.NotAllowed, err == amqp.ErrVhost:
		return fmt.Sprintf("virtual host %q is missing or closed to user %q", target.vhost, target.user), true
	case err.Code == amqp.AccessRefused:
		return fmt.Sprintf("no permission for user %q", target.user), true
	case err.Code == amqp.PreconditionFailed, err.Code == amqp.ResourceLocked,
		err.Code == amqp.NotImplemented:
		return "the broker refused the set-up", true
	case err.Code == amqp.NotFound && strings.Contains(err.Reason, "home node"):
		return "the node that a queue lives on is down", false
	case err.Code == amqp.NotFound:
		return "a queue is missing", false
	case err.Code == amqp.ConnectionForced:
		return "the broker closed the connection", false
	default:
		return "the link was lost", false
	}
}

// brokerTarget is a broker's URL with the parts that may be shown.
type brokerTarget struct {
	url     string // with the password: only for dialing
	address string
	user    string
	vhost   string  // as it may be shown
	hidden  *string // the virtual host that must not be shown; nil: none
}

// parseTarget reads a URL that [ParseURLs] accepted.
func parseTarget(url string) brokerTarget {
	u, fault := parseURL(url)
	if fault != "" {
		return brokerTarget{url: url, address: "?"}
	}
	return u.target()
}
