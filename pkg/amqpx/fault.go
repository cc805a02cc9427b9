package amqpx

import (
	"context"
	"errors"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

// connectionError is why an attempt failed or a link ended, in words an operator can act
// on. It never holds a URL with a password.
type connectionError struct {
	broker string // host:port
	kind   FaultKind
	step   string // of the set-up that failed, with the queue; "" if it is not known
	words  string
	pace   pace
	ended  bool // the link was ready before
	// quiet leaves the cause out of the text, to which it would add nothing.
	quiet bool
	cause error
}

func (f *connectionError) Error() string {
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

func (f *connectionError) Unwrap() error { return f.cause }

// The steps of an attempt, as faults name them.
const (
	stepConnect      = "connect"
	stepTLS          = "TLS handshake"
	stepAMQP         = "AMQP handshake"
	stepLogin        = "authenticate"
	stepVhost        = "open virtual host"
	stepChannel      = "open channel"
	stepDeclare      = "declare queue"
	stepDelete       = "delete queue"
	stepConsume      = "consume from queue"
	stepPublish      = "publish"
	stepPublishTo    = "publish to queue"
	stepControl      = "declare the control plane"
	stepVerifyUser   = "publish to nobody"
	accessOfDeclare  = "configure"
	accessOfConsume  = "read"
	accessOfPublish  = "write"
	accessOfAnything = "such"
)

// stepError is the error of one step of an attempt.
type stepError struct {
	step  string
	queue string // that the step is about, or ""
	cause error
}

// atStep says at which step of an attempt err occurred. An error that says so already keeps
// its own step; nil stays nil.
func atStep(step, queue string, err error) error {
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

// text names the step and its queue.
func (e *stepError) text() string {
	if e.queue == "" {
		return e.step
	}
	return e.step + " " + strconv.Quote(e.queue)
}

// kindError is an error whose kind is known where it occurs.
type kindError struct {
	kind  FaultKind
	cause error // nil if the kind says it all
}

func (e *kindError) Error() string {
	if e.cause == nil {
		return rowOf(e.kind).words
	}
	return e.cause.Error()
}

func (e *kindError) Unwrap() error { return e.cause }

// faultsIn returns the faults of the nodes that were tried.
func faultsIn(err error) []*connectionError {
	all := []error{err}
	if nodes, ok := err.(interface{ Unwrap() []error }); ok {
		all = nodes.Unwrap()
	}
	var faults []*connectionError
	for _, e := range all {
		if f, ok := errors.AsType[*connectionError](e); ok {
			faults = append(faults, f)
		}
	}
	return faults
}

// needsOperator reports whether any of the faults joined in err, and whether every
// one, lasts until an operator acts.
func needsOperator(err error) (some, every bool) {
	faults := faultsIn(err)
	isSlow := func(f *connectionError) bool { return f.pace == paceSlow }
	some = slices.ContainsFunc(faults, isSlow)
	every = len(faults) > 0 && !slices.ContainsFunc(faults, func(f *connectionError) bool { return !isSlow(f) })
	return some, every
}

// kindOf returns the kind of the first fault in err that needs an operator, or else that of
// the fault that came furthest.
func kindOf(err error) FaultKind {
	var best *connectionError
	for _, f := range faultsIn(err) {
		if best == nil || f.pace == paceSlow && best.pace == paceQuick || f.pace == best.pace && best.step == stepConnect && f.step != stepConnect {
			best = f
		}
	}
	if best == nil {
		return ""
	}
	return best.kind
}

// faultKey names what the faults joined in err have in common with the same ones
// a moment later: not their causes, which hold port numbers.
func faultKey(err error) string {
	var kinds []string
	for _, f := range faultsIn(err) {
		kinds = append(kinds, f.broker+": "+f.step+": "+string(f.kind))
	}
	return strings.Join(kinds, "; ")
}

// classify turns the error of one attempt into a connectionError.
func classify(target brokerTarget, err error) *connectionError {
	f := &connectionError{broker: target.address, cause: target.redact(err)}
	queue := ""
	if at, ok := errors.AsType[*stepError](err); ok {
		f.step, queue, f.cause = at.text(), at.queue, target.redact(at.cause)
	}
	f.kind = faultOf(target, err)
	f.explain(target, queue)
	switch f.kind { //nolint:exhaustive // these say it all.
	case FaultNoAnswer, FaultQueueSilent:
		// The cause is that of the calls that were cut off, unless the broker gave one.
		f.quiet = f.step != "" && !failedInside(err)
	}
	if known, ok := errors.AsType[*kindError](err); ok && known.cause == nil {
		f.quiet = true
	}
	return f
}

// explain sets the words and the pace of the kind.
func (f *connectionError) explain(target brokerTarget, queue string) {
	row := rowOf(f.kind)
	f.pace = row.pace
	access := ""
	if refused, ok := errors.AsType[*amqp.Error](f.cause); ok {
		access = accessIn(f.step, refused.Reason)
		if queue == "" {
			queue = queueIn(refused.Reason)
		}
	}
	f.words = strings.NewReplacer("{user}", strconv.Quote(target.user), "{vhost}", strconv.Quote(target.vhost),
		"{queue}", strconv.Quote(queue), "{access}", access).Replace(row.words)
}

// classifyEnd is classify for the end of a link that was ready. Its set-up was accepted,
// so the next attempt need not wait for an operator: if one is needed, it will say so.
func classifyEnd(target brokerTarget, err error) *connectionError {
	f := classify(target, err)
	if f.kind == FaultUnreachable { // what is not known better
		f.kind = FaultConnectionLost
		f.explain(target, "")
	}
	if elsewhere, ok := errors.AsType[*servedElsewhereError](err); ok {
		f.kind, f.cause = FaultServedElsewhere, elsewhere
		f.explain(target, "")
	}
	if refused, ok := errors.AsType[*amqp.Error](err); ok && refused.Code == amqp.PreconditionFailed {
		f.kind = endOf(refused.Reason)
		f.explain(target, "")
	}
	f.pace, f.ended = paceQuick, true
	return f
}

// faultOf returns the kind of the error of one attempt.
func faultOf(target brokerTarget, err error) FaultKind {
	var (
		known    *kindError
		protocol *amqp.Error
		dns      *net.DNSError
		at       *stepError
		dial     *net.OpError
	)
	errors.As(err, &at)
	switch {
	case errors.As(err, &known):
		return known.kind
	case errors.Is(err, context.DeadlineExceeded):
		// First, because calls on a link that was cut in time report a protocol error.
		if at != nil && at.queue != "" {
			return FaultQueueSilent
		}
		return FaultNoAnswer
	case isCertificateError(err):
		return FaultBrokerCertificate
	case errors.As(err, &protocol):
		kind := kindOfException(target, protocol)
		if kind == FaultBrokerInternal && at != nil && at.step == stepConsume {
			return FaultQueueSilent // a quorum queue without a majority
		}
		return kind
	case errors.As(err, &dns):
		// Under an orchestrator a broker that was not started yet has no name, so
		// even "no such host" is worth a quick retry.
		return FaultHostUnknown
	case errors.Is(err, errConnectionEnded):
		return FaultConnectionLost
	case at == nil, errors.As(err, &dial) && dial.Op == "dial":
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

// kindOfException reads the reply codes of AMQP 0-9-1 section 1.8.2 and RabbitMQ's texts
// beside them. The library reports a login that the broker ended without a word as
// ErrCredentials.
func kindOfException(target brokerTarget, err *amqp.Error) FaultKind {
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

// kindOfNotAllowed reads the text of a 530 not-allowed.
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

// kindOfNotFound reads the text of a 404 not-found.
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

// kindOfPrecondition reads the text of a 406 precondition-failed in the set-up.
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

// endOf reads the text of a 406 precondition-failed that ended a link which was ready.
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

// unquoted leaves out what stands between single quotes: names that people chose.
func unquoted(text string) string {
	var b strings.Builder
	for i, part := range strings.Split(text, "'") {
		if i%2 == 0 {
			b.WriteString(part)
		}
	}
	return b.String()
}

// queueIn returns the name of the queue in a broker's text, or "".
func queueIn(text string) string {
	_, rest, _ := strings.Cut(text, "queue '")
	name, _, _ := strings.Cut(rest, "'")
	return name
}

// accessIn returns the permission that a refusal speaks of. RabbitMQ names it from 3.11 on;
// before, the step tells.
func accessIn(step, text string) string {
	for _, access := range []string{accessOfDeclare, accessOfPublish, accessOfConsume} {
		if strings.Contains(text, access+" access") {
			return access
		}
	}
	switch {
	case strings.HasPrefix(step, stepDeclare), strings.HasPrefix(step, stepControl), strings.HasPrefix(step, stepDelete):
		return accessOfDeclare
	case strings.HasPrefix(step, stepConsume):
		return accessOfConsume
	case step == stepVerifyUser, step == stepPublish, strings.Contains(text, "access to exchange"):
		return accessOfPublish
	default:
		return accessOfAnything
	}
}

// brokerTarget is a broker's URL with the parts that may be shown.
type brokerTarget struct {
	url      string // with the password: only for dialing
	address  string
	user     string
	vhost    string  // as it may be shown
	hidden   *string // the virtual host that must not be shown; nil: none
	external bool    // the user is the one in the client certificate
}

// parseTarget reads a URL that [ParseURLs] accepted.
func parseTarget(url string) brokerTarget {
	u, fault := parseURL(url)
	if fault != "" {
		return brokerTarget{url: url, address: "?"}
	}
	return u.target()
}

// wrongLogin returns the kind of a refused login, of which the broker never says the reason.
func (t brokerTarget) wrongLogin() FaultKind {
	switch {
	case t.external:
		return FaultCertificateUser
	case t.user == "guest" && !t.isLoopback():
		return FaultGuest
	default:
		return FaultCredentials
	}
}

// isLoopback reports whether the broker is on this machine.
func (t brokerTarget) isLoopback() bool {
	host, _, err := net.SplitHostPort(t.address)
	if err != nil {
		return false
	}
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

const (
	// faultAgain is how long a fault that goes on is not said again.
	faultAgain = 30 * time.Second
	// maxFaultsSaid bounds the faults of which the time is remembered.
	maxFaultsSaid = 64
	// repeatedFaults is how often in a row the broker may end the connection at the same step
	// of the set-up before that counts as a fault for an operator.
	repeatedFaults = 5
)

// faultLog decides which faults are said. Its zero value is ready. It is for one goroutine.
type faultLog struct {
	said     map[string]time.Time
	last     string
	repeated int
	attempts int // that failed since the link was ready for a while
}

// note takes a fault and reports whether it is to be said: at once, and while it goes on
// every faultAgain.
func (l *faultLog) note(fault string) bool {
	l.attempts++
	if l.repeated++; fault != l.last {
		l.repeated, l.last = 1, fault
	}
	now := time.Now()
	if at, ok := l.said[fault]; ok && now.Sub(at) < faultAgain {
		return false
	}
	if l.said == nil || len(l.said) >= maxFaultsSaid {
		l.said = make(map[string]time.Time)
	}
	l.said[fault] = now
	return true
}

// isStubborn reports whether a broker has refused the same step of the set-up so often by
// the end of the connection that it will go on until an operator acts.
func (l *faultLog) isStubborn(err error) bool {
	faults := faultsIn(err)
	return l.repeated >= repeatedFaults && len(faults) > 0 && !slices.ContainsFunc(faults, func(f *connectionError) bool {
		return f.pace == paceQuick && (f.ended || f.kind != FaultBrokerInternal && f.kind != FaultProtocol)
	})
}
