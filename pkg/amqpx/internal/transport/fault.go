package transport

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"rabbitmq-rpc/pkg/amqpx/internal/xsync"
)

// ConnectionError is the reason why an attempt to connect failed or a connection ended, in
// words an operator can act on. It never contains a URL with a password.
type ConnectionError struct {
	broker string // host:port
	Kind   FaultKind
	step   string // the failed step of the set-up, with the queue; "" if unknown
	words  string
	pace   pace
	ended  bool // the connection was ready before
	// quiet leaves the cause out of the text, because the cause would add no information.
	quiet bool
	cause error
}

func (f *ConnectionError) Error() string {
	text := "broker " + f.broker + ": "
	if f.step != "" {
		text += f.step + ": "
	}
	text += f.words
	if f.cause == nil || f.quiet {
		return text
	}
	return text + ": " + f.cause.Error()
}

func (f *ConnectionError) Unwrap() error { return f.cause }

// The steps of an attempt to connect, as errors name them.
const (
	stepCredentials  = "get credentials"
	stepConnect      = "connect"
	stepTLS          = "TLS handshake"
	stepAMQP         = "AMQP handshake"
	stepLogin        = "authenticate"
	stepVhost        = "open virtual host"
	stepChannel      = "open channel"
	StepDeclare      = "declare queue"
	stepDelete       = "delete queue"
	StepConsume      = "consume from queue"
	StepPublish      = "publish"
	StepPublishTo    = "publish to queue"
	StepControl      = "declare the control plane"
	StepExchange     = "declare the request exchange"
	StepFindExchange = "look for the request exchange"
	StepVerifyUser   = "publish to nobody"
	accessOfDeclare  = "configure"
	accessOfConsume  = "read"
	accessOfPublish  = "write"
	accessOfAnything = "such"
)

// stepError is the error of one step of an attempt.
type stepError struct {
	step  string
	queue string // the queue of the step, or ""
	cause error
}

// AtStep adds to err the step of the attempt at which err occurred. An err with a step keeps
// its own; nil stays nil.
func AtStep(step, queue string, err error) error {
	if err == nil {
		return nil
	}
	if _, ok := errors.AsType[*stepError](err); ok {
		return err
	}
	return &stepError{step, queue, err}
}

func (e *stepError) Error() string { return e.text() + ": " + e.cause.Error() }
func (e *stepError) Unwrap() error { return e.cause }

// text returns the name of the step and its queue.
func (e *stepError) text() string {
	if e.queue == "" {
		return e.step
	}
	return e.step + " " + strconv.Quote(e.queue)
}

// KindError is an error with a kind that is known where the error occurs.
type KindError struct {
	Kind  FaultKind
	Cause error // nil if the kind is the whole description
}

func (e *KindError) Error() string {
	if e.Cause == nil {
		return rowOf(e.Kind).words
	}
	return e.Cause.Error()
}

func (e *KindError) Unwrap() error { return e.Cause }

// faultsIn returns the faults in err, one for each node of a failed attempt to connect.
func faultsIn(err error) []*ConnectionError {
	all := []error{err}
	if nodes, ok := err.(interface{ Unwrap() []error }); ok {
		all = nodes.Unwrap()
	}
	var faults []*ConnectionError
	for _, e := range all {
		if f, ok := errors.AsType[*ConnectionError](e); ok {
			faults = append(faults, f)
		}
	}
	return faults
}

// needsOperator reports whether some, and whether every, fault joined in err lasts until an
// operator acts.
func needsOperator(err error) (some, every bool) {
	faults := faultsIn(err)
	isSlow := func(f *ConnectionError) bool { return f.pace == paceSlow }
	some = slices.ContainsFunc(faults, isSlow)
	every = len(faults) > 0 && !slices.ContainsFunc(faults, func(f *ConnectionError) bool { return !isSlow(f) })
	return some, every
}

// NeedsOperator reports whether every fault joined in err lasts until an operator acts.
func NeedsOperator(err error) bool {
	_, every := needsOperator(err)
	return every
}

// FaultIn returns the kind of the most telling fault in err, which may wrap the error of an
// attempt to connect; "" if there is none.
func FaultIn(err error) FaultKind {
	if kind := kindOf(err); kind != "" || err == nil {
		return kind
	}
	switch wrapping := err.(type) { //nolint:errorlint // it unwraps.
	case interface{ Unwrap() error }:
		return FaultIn(wrapping.Unwrap())
	case interface{ Unwrap() []error }:
		for _, wrapped := range wrapping.Unwrap() {
			if kind := FaultIn(wrapped); kind != "" {
				return kind
			}
		}
	}
	return ""
}

// kindOf returns the kind of the most telling fault in err: a fault for an operator before any
// other, then a fault at a later step before a fault at the step of connecting, then the first.
func kindOf(err error) FaultKind {
	var best *ConnectionError
	for _, f := range faultsIn(err) {
		if best == nil || f.pace == paceSlow && best.pace == paceQuick || f.pace == best.pace && best.step == stepConnect && f.step != stepConnect {
			best = f
		}
	}
	if best == nil {
		return ""
	}
	return best.Kind
}

// faultKey returns equal keys for equal faults at different times. The key leaves out the
// causes, because their texts contain port numbers.
func faultKey(err error) string {
	var kinds []string
	for _, f := range faultsIn(err) {
		kinds = append(kinds, f.broker+": "+f.step+": "+string(f.Kind))
	}
	return strings.Join(kinds, "; ")
}

// Classify makes a ConnectionError of the error of one attempt to connect.
func Classify(target Target, err error) *ConnectionError {
	f := &ConnectionError{broker: target.Address, cause: target.redact(err)}
	queue := ""
	if at, ok := errors.AsType[*stepError](err); ok {
		f.step, queue, f.cause = at.text(), at.queue, target.redact(at.cause)
	}
	f.Kind = FaultOf(target, err)
	f.explain(target, queue)
	switch f.Kind { //nolint:exhaustive // these say it all.
	case FaultNoAnswer, FaultQueueSilent:
		// The cause is the error of an aborted call and says nothing, unless the broker sent
		// an exception.
		f.quiet = f.step != "" && !failedInside(err)
	}
	if known, ok := errors.AsType[*KindError](err); ok && known.Cause == nil {
		f.quiet = true
	}
	return f
}

// explain sets the words and the pace for the kind.
func (f *ConnectionError) explain(target Target, queue string) {
	row := rowOf(f.Kind)
	f.pace = row.pace
	access := ""
	if refused, ok := errors.AsType[*amqp.Error](f.cause); ok {
		access = accessIn(f.step, refused.Reason)
		if queue == "" {
			queue = queueIn(refused.Reason)
		}
	}
	f.words = strings.NewReplacer("{user}", strconv.Quote(target.User), "{vhost}", strconv.Quote(target.Vhost),
		"{queue}", strconv.Quote(queue), "{access}", access).Replace(row.words)
}

// classifyEnd is Classify for the end of a connection that was ready. The broker accepted its
// set-up, so the next attempt need not wait for an operator: a fault of the set-up would show
// in that attempt.
func classifyEnd(target Target, err error) *ConnectionError {
	f := Classify(target, err)
	if f.Kind == FaultUnreachable { // no better kind is known
		f.Kind = FaultConnectionLost
		f.explain(target, "")
	}
	if elsewhere, ok := errors.AsType[*ServedElsewhereError](err); ok {
		f.Kind, f.cause = FaultServedElsewhere, elsewhere
		f.explain(target, "")
	}
	if refused, ok := errors.AsType[*amqp.Error](err); ok && refused.Code == amqp.PreconditionFailed {
		f.Kind = endOf(refused.Reason)
		f.explain(target, "")
	}
	f.pace, f.ended = paceQuick, true
	return f
}

// FaultOf returns the kind of an error of one attempt to connect.
func FaultOf(target Target, err error) FaultKind {
	var (
		known    *KindError
		protocol *amqp.Error
		dns      *net.DNSError
		at       *stepError
		dial     *net.OpError
	)
	errors.As(err, &at)
	switch {
	case errors.As(err, &known):
		return known.Kind
	case errors.Is(err, context.DeadlineExceeded):
		// First, because calls on a connection that was cut report a protocol error.
		if at != nil && at.queue != "" {
			return FaultQueueSilent
		}
		return FaultNoAnswer
	case isCertificateError(err):
		return FaultBrokerCertificate
	case errors.As(err, &protocol):
		kind := kindOfException(target, protocol)
		if kind == FaultBrokerInternal && at != nil && at.step == StepConsume {
			return FaultQueueSilent // a quorum queue without a majority
		}
		return kind
	case errors.As(err, &dns):
		// Under an orchestrator the host name of a broker that has not started yet does not
		// exist, so even "no such host" deserves a quick retry.
		return FaultHostUnknown
	case errors.Is(err, ErrConnectionEnded):
		return FaultConnectionLost
	case at == nil, at.step == stepConnect, errors.As(err, &dial) && dial.Op == "dial":
		return FaultUnreachable
	default:
		return FaultConnectionLost
	}
}

// failedInside reports whether the broker answered with 541 internal-error.
func failedInside(err error) bool {
	refused, ok := errors.AsType[*amqp.Error](err)
	return ok && refused.Server && refused.Code == amqp.InternalError
}

// kindOfException interprets the reply codes of AMQP 0-9-1 section 1.8.2 and RabbitMQ's texts.
// If the broker closes the connection during login without giving a reason, the library
// reports ErrCredentials.
func kindOfException(target Target, err *amqp.Error) FaultKind {
	switch err {
	case amqp.ErrCredentials:
		return target.wrongLogin()
	case amqp.ErrSASL:
		return FaultLoginMechanism
	case amqp.ErrVhost:
		return FaultVhostClosed
	case amqp.ErrChannelMax:
		return FaultChannelMax
	case amqp.ErrClosed:
		return FaultConnectionLost
	}
	text := unquoted(err.Reason)
	switch err.Code {
	case amqp.NotAllowed:
		return kindOfNotAllowed(text)
	case amqp.AccessRefused:
		switch {
		case strings.Contains(text, "exclusive use"):
			return FaultQueueInUse
		case strings.Contains(text, "Login was refused"):
			return target.wrongLogin()
		}
		return FaultPermission
	case amqp.NotFound:
		return kindOfNotFound(text)
	case amqp.ResourceLocked:
		return FaultQueueExclusive
	case amqp.PreconditionFailed:
		return kindOfPrecondition(text)
	case amqp.ContentTooLarge:
		return FaultMessageTooLarge
	case amqp.ConnectionForced:
		return FaultBrokerClosed
	case amqp.NotImplemented:
		return FaultNotImplemented
	case amqp.InternalError:
		switch {
		case strings.Contains(text, "is deprecated"):
			return FaultFeatureForbidden
		case strings.Contains(text, "vhost") && strings.Contains(text, "is down"):
			return FaultVhostDown
		}
		return FaultBrokerInternal
	case amqp.FrameError, amqp.SyntaxError, amqp.CommandInvalid, amqp.ChannelError, amqp.UnexpectedFrame, amqp.ResourceError:
		if err.Server {
			return FaultProtocol
		}
	}
	return FaultConnectionLost
}

// kindOfNotAllowed interprets the text of a 530 not-allowed.
func kindOfNotAllowed(text string) FaultKind {
	switch {
	case strings.HasSuffix(text, "not found"):
		return FaultVhostMissing
	case strings.Contains(text, "consumers per channel"):
		return FaultConsumerLimit
	case strings.Contains(text, "limit") && strings.Contains(text, "channels"):
		return FaultChannelLimit
	case strings.Contains(text, "limit"):
		return FaultConnectionLimit
	case strings.Contains(text, "is down"):
		return FaultVhostDown
	default:
		return FaultVhostClosed
	}
}

// kindOfNotFound interprets the text of a 404 not-found.
func kindOfNotFound(text string) FaultKind {
	switch {
	case strings.Contains(text, "home node"):
		return FaultQueueNodeDown
	case strings.Contains(text, "stopped by supervisor"), strings.Contains(text, "crashed"):
		return FaultQueueStopped
	case strings.Contains(text, "timeout"), strings.Contains(text, "failed to perform operation"):
		return FaultQueueSilent
	case strings.Contains(text, "no exchange"):
		return FaultExchangeMissing
	default:
		return FaultQueueMissing
	}
}

// kindOfPrecondition interprets the text of a 406 precondition-failed during the set-up.
func kindOfPrecondition(text string) FaultKind {
	switch {
	case strings.Contains(text, "limit") && strings.Contains(text, "reached"):
		return FaultQueueLimit
	case strings.Contains(text, "inequivalent arg") && !strings.Contains(text, "for exchange"):
		return FaultQueueDiffers
	case strings.Contains(text, "invalid arg"), strings.Contains(text, "invalid property"):
		return FaultQueueProperties
	default:
		return FaultSetUpRefused
	}
}

// endOf interprets the text of a 406 precondition-failed that ended a ready connection.
func endOf(text string) FaultKind {
	switch {
	case strings.Contains(text, "message size"):
		return FaultMessageTooLarge
	case strings.Contains(text, "acknowledgement") && strings.Contains(text, "timed out"):
		return FaultAckTimeout
	default:
		return FaultChannelClosed
	}
}

// isCertificateError reports whether this side refused the broker's certificate.
func isCertificateError(err error) bool {
	var (
		unknown  x509.UnknownAuthorityError
		hostname x509.HostnameError
		invalid  x509.CertificateInvalidError
		verify   *tls.CertificateVerificationError
	)
	return errors.As(err, &verify) || errors.As(err, &unknown) || errors.As(err, &hostname) || errors.As(err, &invalid)
}

// unquoted removes the text between single quotes: names chosen by users.
func unquoted(text string) string {
	var b strings.Builder
	for i, part := range strings.Split(text, "'") {
		if i%2 == 0 {
			b.WriteString(part)
		}
	}
	return b.String()
}

// SizeLimitIn returns the broker's largest message, in bytes, if an exception contains it.
func SizeLimitIn(reason *amqp.Error) (limit int, ok bool) {
	var size int
	_, text, found := strings.Cut(reason.Reason, "message size ")
	if !found {
		return 0, false
	}
	for _, format := range []string{"%d is larger than configured max size %d", "%d is larger than max size %d"} {
		if n, err := fmt.Sscanf(text, format, &size, &limit); err == nil && n == 2 {
			return limit, limit > 0
		}
	}
	return 0, false
}

// IsAboutMessage reports whether an exception on a channel for publishing is about one of its
// messages: 406 precondition-failed or 311 content-too-large. The cause of any other
// exception, such as a missing permission, would affect every message.
func IsAboutMessage(reason *amqp.Error) bool {
	return reason != nil && (reason.Code == amqp.PreconditionFailed || reason.Code == amqp.ContentTooLarge)
}

// queueIn returns the name of the queue in a text of the broker, or "".
func queueIn(text string) string {
	_, rest, _ := strings.Cut(text, "queue '")
	name, _, _ := strings.Cut(rest, "'")
	return name
}

// accessIn returns the missing permission for an exception of the broker. RabbitMQ names the
// permission from 3.11 on; for earlier versions the step implies the permission.
func accessIn(step, text string) string {
	for _, access := range []string{accessOfDeclare, accessOfPublish, accessOfConsume} {
		if strings.Contains(text, access+" access") {
			return access
		}
	}
	switch {
	case step == StepExchange: // its declaration and its bindings need several
		return accessOfAnything
	case strings.HasPrefix(step, StepDeclare), strings.HasPrefix(step, StepControl), strings.HasPrefix(step, stepDelete):
		return accessOfDeclare
	case strings.HasPrefix(step, StepConsume):
		return accessOfConsume
	case step == StepVerifyUser, step == StepPublish, strings.Contains(text, "access to exchange"):
		return accessOfPublish
	default:
		return accessOfAnything
	}
}

// ErrConnectionEnded is the end of a connection for which the library kept no reason.
var ErrConnectionEnded error = &KindError{Kind: FaultConnectionLost, Cause: errors.New("it ended without a reason")}

// ServedElsewhereError ends a session without responses, when servers answer by way of another
// node.
type ServedElsewhereError struct{ Address string }

func (e *ServedElsewhereError) Error() string {
	return "no call gets a response here, and servers respond by way of " + e.Address
}

func (e *ServedElsewhereError) Unwrap() error { return ErrConnectionEnded }

const (
	// faultAgain is the interval at which a lasting fault is logged again.
	faultAgain = 30 * time.Second
	// maxFaultsSaid bounds the number of faults with a remembered time.
	maxFaultsSaid = 64
	// repeatedFaults is the number of times in a row for which the broker may end the
	// connection at the same step of the set-up until the fault counts as a fault for an
	// operator.
	repeatedFaults = 5
)

// faultLog decides which faults are logged. Its zero value is ready. It is for one goroutine.
type faultLog struct {
	said     xsync.Recent[string] // the faults logged within faultAgain
	last     string
	repeated int
	attempts int // failed attempts since the connection was last ready for SettledAfter
}

// note records a fault and reports whether it must be logged: at its first occurrence, and
// every faultAgain while it lasts.
func (l *faultLog) note(fault string) bool {
	l.attempts++
	if l.repeated++; fault != l.last {
		l.repeated, l.last = 1, fault
	}
	now := time.Now()
	if l.said.Has(fault, now) {
		return false
	}
	l.said.Add(fault, now, faultAgain, maxFaultsSaid)
	return true
}

// isStubborn reports whether the same faults have occurred repeatedFaults times in a row, each
// of them for an operator or an end of the connection by the broker during the set-up. They
// will last until an operator acts.
func (l *faultLog) isStubborn(err error) bool {
	faults := faultsIn(err)
	return l.repeated >= repeatedFaults && len(faults) > 0 && !slices.ContainsFunc(faults, func(f *ConnectionError) bool {
		return f.pace == paceQuick && (f.ended || f.Kind != FaultBrokerInternal && f.Kind != FaultProtocol)
	})
}
