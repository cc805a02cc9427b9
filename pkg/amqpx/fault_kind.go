package amqpx

import "rabbitmq-rpc/pkg/amqpx/internal/transport"

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
	// FaultNotImplemented: the broker does not know what was asked of it.
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
