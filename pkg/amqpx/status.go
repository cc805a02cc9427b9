package amqpx

import (
	"context"
	"errors"
	"sync"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"rabbitmq-rpc/pkg/amqpx/internal/transport"
)

// State is the state of a client's or server's connection to the broker.
type State uint8

const (
	// StateConnecting: an attempt to dial and set up is under way.
	StateConnecting State = iota
	// StateReady: dialed, topology declared, consumers active.
	StateReady
	// StateBlocked: ready, but the broker blocks publishing because of an alarm.
	StateBlocked
	// StateReconnecting: the last attempt failed or the connection was lost; the next attempt
	// follows after a backoff.
	StateReconnecting
	// StateDraining: a server has stopped consuming and finishes the requests it has started.
	StateDraining
	// StateClosed: closed for good.
	StateClosed
)

// String returns the state's name in lower case.
func (s State) String() string {
	switch s {
	case StateConnecting:
		return "connecting"
	case StateReady:
		return "ready"
	case StateBlocked:
		return "blocked"
	case StateReconnecting:
		return "reconnecting"
	case StateDraining:
		return "draining"
	case StateClosed:
		return "closed"
	default:
		return "unknown"
	}
}

// Status is a snapshot of a connection. It never holds a password.
type Status struct {
	// State is the state of the connection.
	State State
	// Err is the last failure; nil while ready. It is kept while reconnecting.
	Err error
	// Fault is the kind of Err, for programs; "" while ready. After attempts at several nodes
	// it is the first fault that needs an operator, or else the fault of the node where the
	// attempt got furthest.
	Fault FaultKind
	// NeedsOperator reports that Err lasts until an operator acts, such as a wrong password or a
	// missing permission, at every broker of the list. The attempts to connect go on all the
	// same, [DefaultBackoffMax] apart.
	NeedsOperator bool
	// Reason is the broker's text while blocked, such as "low on memory". While a client is
	// ready, Reason describes the fault of the request queue, as far as the client's calls
	// noticed a fault.
	Reason string
	// Broker is the address (host:port) of the current or last broker.
	Broker string
	// Node is the name of the broker's node, such as "rabbit@host", if the broker tells: RabbitMQ
	// does so if its operator sets the server property node (docs/operations.md). "" otherwise.
	Node string
	// Generation counts the sessions that became ready; the first is 1.
	Generation uint64
	// Since is when the state was entered.
	Since time.Time
	// BrokerCertificateEnd and OwnCertificateEnd are when the certificates of the last
	// connection with TLS end: the earliest among those that the broker sent, and the client
	// certificate. Zero: there is none. A certificate that was replaced since shows with the
	// next connection.
	BrokerCertificateEnd, OwnCertificateEnd time.Time
}

// Ready reports whether calls can flow: the connection is ready and not blocked.
func (s Status) Ready() bool { return s.State == StateReady }

// statusBoard holds the current Status and notifies watchers of changes. Its zero value is
// ready to use.
type statusBoard struct {
	mu       sync.Mutex
	current  Status
	blocked  time.Duration // in total, without the current state
	watchers map[chan Status]struct{}
}

// get returns the current status.
func (b *statusBoard) get() Status {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.current
}

// update changes the status and offers the new status to every watcher. Closed is final, and
// after draining only closed follows: a new connection for the delivery of the last responses
// does not make the server ready again.
func (b *statusBoard) update(change func(*Status)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.current.State == StateClosed {
		return
	}
	before := b.current.State
	change(&b.current)
	if before == StateDraining && b.current.State != StateClosed {
		b.current.State = StateDraining
	}
	if b.current.State != before || b.current.Since.IsZero() {
		now := time.Now()
		if before == StateBlocked {
			b.blocked += now.Sub(b.current.Since)
		}
		b.current.Since = now
	}
	for w := range b.watchers {
		offer(w, b.current)
		if b.current.State == StateClosed {
			b.unwatch(w)
		}
	}
}

// OnConnecting implements transport.Observer.
func (b *statusBoard) OnConnecting(address string) {
	b.update(func(s *Status) { s.State, s.Broker, s.Node, s.Reason = StateConnecting, address, "", "" })
}

// OnCertificates implements transport.Observer.
func (b *statusBoard) OnCertificates(broker, own time.Time) {
	b.update(func(s *Status) { s.BrokerCertificateEnd, s.OwnCertificateEnd = broker, own })
}

// OnNode implements transport.Observer.
func (b *statusBoard) OnNode(name string) { b.update(func(s *Status) { s.Node = name }) }

// OnReady implements transport.Observer.
func (b *statusBoard) OnReady(generation uint64, blocked func() bool) {
	b.update(func(s *Status) {
		s.State, s.Err, s.Fault, s.NeedsOperator, s.Generation = StateReady, nil, "", false, generation
		if blocked() {
			s.State = StateBlocked
		}
	})
}

// OnBlocked implements transport.Observer.
func (b *statusBoard) OnBlocked(blocking amqp.Blocking) {
	b.update(func(s *Status) {
		s.Reason = blocking.Reason // also for a session in set-up
		switch {
		case blocking.Active && s.State == StateReady:
			s.State = StateBlocked
		case !blocking.Active && s.State == StateBlocked:
			s.State = StateReady
		}
	})
}

// OnFault implements transport.Observer.
func (b *statusBoard) OnFault(err error, kind FaultKind) {
	lasts := transport.NeedsOperator(err)
	b.update(func(s *Status) {
		s.State, s.Err, s.Fault, s.NeedsOperator, s.Reason = StateReconnecting, err, kind, lasts, ""
	})
}

// OnClosed implements transport.Observer.
func (b *statusBoard) OnClosed() { b.update(func(s *Status) { s.State = StateClosed }) }

// waitReady waits until the state is StateReady. If ctx ends first, it returns the error of
// ctx joined with the last fault. It returns a fault that needs an operator at once, and ErrClosed
// when the state is closed or draining.
func (b *statusBoard) waitReady(ctx context.Context) error {
	updates, stop := b.watch()
	defer stop()
	for {
		select {
		case st := <-updates:
			switch {
			case st.Ready():
				return nil
			case st.State == StateClosed || st.State == StateDraining:
				return ErrClosed
			case st.State == StateReconnecting && st.NeedsOperator:
				return st.Err
			}
		case <-ctx.Done():
			return errors.Join(ctx.Err(), b.get().Err)
		}
	}
}

// noStatus is a transport.Observer without effect.
type noStatus struct{}

func (noStatus) OnConnecting(string)           {}
func (noStatus) OnCertificates(_, _ time.Time) {}

// OnNode implements transport.Observer.
func (noStatus) OnNode(string)               {}
func (noStatus) OnReady(uint64, func() bool) {}
func (noStatus) OnBlocked(amqp.Blocking)     {}
func (noStatus) OnFault(error, FaultKind)    {}
func (noStatus) OnClosed()                   {}

// blockedFor returns how long the broker has blocked publishing, in total.
func (b *statusBoard) blockedFor() time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.current.State == StateBlocked {
		return b.blocked + time.Since(b.current.Since)
	}
	return b.blocked
}

// watch registers a watcher, which receives the current status at once. Its channel is closed
// after the status closed, and by stop.
func (b *statusBoard) watch() (updates <-chan Status, stop func()) {
	w := make(chan Status, 1)
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.watchers == nil {
		b.watchers = make(map[chan Status]struct{})
	}
	b.watchers[w] = struct{}{}
	w <- b.current
	if b.current.State == StateClosed {
		b.unwatch(w)
	}
	return w, func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.unwatch(w)
	}
}

// unwatch ends a watcher, once. The caller holds mu.
func (b *statusBoard) unwatch(w chan Status) {
	if _, ok := b.watchers[w]; ok {
		delete(b.watchers, w)
		close(w)
	}
}

// watchUntil is watch until ctx ends. A nil context is a mistake, which the only status shows.
func (b *statusBoard) watchUntil(ctx context.Context) <-chan Status {
	if ctx == nil {
		updates, _ := closedBoard(errNilContext).watch()
		return updates
	}
	updates, stop := b.watch()
	context.AfterFunc(ctx, stop)
	return updates
}

// FaultOf returns the kind of the fault of the connection in an error, such as the error of
// [Client.WaitReady] or [Status.Err], and "" if there is none.
func FaultOf(err error) FaultKind { return transport.FaultIn(err) }

// offer puts the newest value into a single-slot channel and never blocks: an unread value is
// replaced. Only one goroutine at a time offers (it holds the board's lock), so the second
// send always finds the slot free.
func offer(w chan Status, s Status) {
	select {
	case <-w:
	default:
	}
	select {
	case w <- s:
	default:
	}
}

// FaultKind names a kind of fault of a connection to a broker: the reason why the connection
// cannot be made, or why it ended. The kind is for programs; the text for people is
// [Status.Err]. docs/operations.md has a row for each kind.
type FaultKind = transport.FaultKind

// The kinds of faults of the network and of the port.
const (
	// FaultHostUnknown: no address is known for the host's name.
	FaultHostUnknown = transport.FaultHostUnknown
	// FaultUnreachable: nothing accepts a connection at the address.
	FaultUnreachable = transport.FaultUnreachable
	// FaultNoAnswer: the broker accepted the connection and did not answer in time.
	FaultNoAnswer = transport.FaultNoAnswer
	// FaultClosedEarly: the connection ended before the broker sent anything.
	FaultClosedEarly = transport.FaultClosedEarly
	// FaultNotAMQP: the port speaks another protocol.
	FaultNotAMQP = transport.FaultNotAMQP
	// FaultPortHTTP: the port speaks HTTP, like the management plugin's.
	FaultPortHTTP = transport.FaultPortHTTP
	// FaultPortTLS: the port speaks TLS and the URL begins with amqp.
	FaultPortTLS = transport.FaultPortTLS
	// FaultPortPlain: the port speaks AMQP without TLS and the URL begins with amqps.
	FaultPortPlain = transport.FaultPortPlain
	// FaultConnectionLost: the connection ended without a reason.
	FaultConnectionLost = transport.FaultConnectionLost
	// FaultUnresponsive: the broker does not answer on an open connection.
	FaultUnresponsive = transport.FaultUnresponsive
)

// The kinds of faults of TLS and of the login.
const (
	// FaultBrokerCertificate: this process does not trust the broker's certificate.
	FaultBrokerCertificate = transport.FaultBrokerCertificate
	// FaultClientCertificateMissing: the broker asks for a client certificate.
	FaultClientCertificateMissing = transport.FaultClientCertificateMissing
	// FaultClientCertificateExpired: the client certificate is not valid any more, or not yet.
	FaultClientCertificateExpired = transport.FaultClientCertificateExpired
	// FaultClientCertificate: the broker does not accept the client certificate.
	FaultClientCertificate = transport.FaultClientCertificate
	// FaultTLSHandshake: the two sides have no version or cipher of TLS in common, or the
	// handshake failed for another reason.
	FaultTLSHandshake = transport.FaultTLSHandshake
	// FaultTLSFiles: the TLS files that the URL or the settings name cannot be used.
	FaultTLSFiles = transport.FaultTLSFiles
	// FaultCredentials: the user name or the password is wrong.
	FaultCredentials = transport.FaultCredentials
	// FaultCredentialsSource: the function of WithCredentials returned an error.
	FaultCredentialsSource = transport.FaultCredentialsSource
	// FaultGuest: guest was refused, which may log in only from the broker's own machine.
	FaultGuest = transport.FaultGuest
	// FaultCertificateUser: no user has the name in the client certificate.
	FaultCertificateUser = transport.FaultCertificateUser
	// FaultLoginMechanism: the broker offers no login mechanism that the URL allows.
	FaultLoginMechanism = transport.FaultLoginMechanism
	// FaultVhostMissing: the virtual host does not exist.
	FaultVhostMissing = transport.FaultVhostMissing
	// FaultVhostClosed: the user has no permissions in the virtual host.
	FaultVhostClosed = transport.FaultVhostClosed
	// FaultVhostDown: the virtual host exists and does not run.
	FaultVhostDown = transport.FaultVhostDown
)

// The kinds of faults of limits, permissions and features.
const (
	// FaultConnectionLimit: a limit of connections, of the user, virtual host or node, is reached.
	FaultConnectionLimit = transport.FaultConnectionLimit
	// FaultChannelLimit: a limit of channels, of the user or node, is reached.
	FaultChannelLimit = transport.FaultChannelLimit
	// FaultChannelMax: a connection may have too few channels (channel_max).
	FaultChannelMax = transport.FaultChannelMax
	// FaultConsumerLimit: a channel may have too few consumers (consumer_max_per_channel).
	FaultConsumerLimit = transport.FaultConsumerLimit
	// FaultQueueLimit: a limit of queues, of the virtual host or cluster, is reached.
	FaultQueueLimit = transport.FaultQueueLimit
	// FaultPermission: the user lacks a permission.
	FaultPermission = transport.FaultPermission
	// FaultFeatureForbidden: the broker forbids a deprecated feature, such as transient queues.
	FaultFeatureForbidden = transport.FaultFeatureForbidden
	// FaultNotImplemented: the broker does not implement the requested operation.
	FaultNotImplemented = transport.FaultNotImplemented
)

// The kinds of faults of queues.
const (
	// FaultQueueMissing: there is no such queue.
	FaultQueueMissing = transport.FaultQueueMissing
	// FaultExchangeMissing: there is no such exchange.
	FaultExchangeMissing = transport.FaultExchangeMissing
	// FaultQueueNodeDown: the node that the queue lives on is down.
	FaultQueueNodeDown = transport.FaultQueueNodeDown
	// FaultQueueStopped: the queue's process crashed or was stopped by its supervisor.
	FaultQueueStopped = transport.FaultQueueStopped
	// FaultQueueSilent: the broker answers, but not for the queue.
	FaultQueueSilent = transport.FaultQueueSilent
	// FaultQueueInUse: another consumer has the queue for itself.
	FaultQueueInUse = transport.FaultQueueInUse
	// FaultQueueExclusive: the queue is exclusive to another connection.
	FaultQueueExclusive = transport.FaultQueueExclusive
	// FaultQueueDiffers: the queue exists with other properties.
	FaultQueueDiffers = transport.FaultQueueDiffers
	// FaultQueueProperties: the broker does not make a queue with these properties.
	FaultQueueProperties = transport.FaultQueueProperties
	// FaultQueueStream: the queue is a stream.
	FaultQueueStream = transport.FaultQueueStream
	// FaultQueueDeleted: a queue was deleted while it was in use.
	FaultQueueDeleted = transport.FaultQueueDeleted
	// FaultConsumerCanceled: the broker ended a subscription.
	FaultConsumerCanceled = transport.FaultConsumerCanceled
)

// The kinds of faults of connections that were ready, and what remains.
const (
	// FaultBrokerClosed: the broker closed the connection, as when it shuts down.
	FaultBrokerClosed = transport.FaultBrokerClosed
	// FaultAckTimeout: the broker's consumer_timeout passed for a request.
	FaultAckTimeout = transport.FaultAckTimeout
	// FaultMessageTooLarge: a message was larger than the broker takes.
	FaultMessageTooLarge = transport.FaultMessageTooLarge
	// FaultMessagesNacked: the broker nacks every message on a connection.
	FaultMessagesNacked = transport.FaultMessagesNacked
	// FaultServedElsewhere: no call through this node gets a response, and some calls through
	// another node do.
	FaultServedElsewhere = transport.FaultServedElsewhere
	// FaultChannelClosed: the broker closed a channel for another reason.
	FaultChannelClosed = transport.FaultChannelClosed
	// FaultSetUpRefused: the broker refused a step of the set-up for another reason.
	FaultSetUpRefused = transport.FaultSetUpRefused
	// FaultProtocol: the two sides do not agree about the protocol.
	FaultProtocol = transport.FaultProtocol
	// FaultBrokerInternal: the broker failed internally.
	FaultBrokerInternal = transport.FaultBrokerInternal
	// FaultLocal: this process ended the connection.
	FaultLocal = transport.FaultLocal
)
