package transport

// FaultKind names a kind of fault of a connection to a broker. Package amqpx documents the kinds.
type FaultKind string

// The kinds of faults of the network and of the port.
const (
	FaultHostUnknown    FaultKind = "host_unknown"
	FaultUnreachable    FaultKind = "unreachable"
	FaultNoAnswer       FaultKind = "no_answer"
	FaultClosedEarly    FaultKind = "closed_early"
	FaultNotAMQP        FaultKind = "not_amqp"
	FaultPortHTTP       FaultKind = "port_http"
	FaultPortTLS        FaultKind = "port_tls"
	FaultPortPlain      FaultKind = "port_plain"
	FaultConnectionLost FaultKind = "connection_lost"
	FaultUnresponsive   FaultKind = "unresponsive"
)

// The kinds of faults of TLS and of the login.
const (
	FaultBrokerCertificate        FaultKind = "broker_certificate"
	FaultClientCertificateMissing FaultKind = "client_certificate_missing"
	FaultClientCertificateExpired FaultKind = "client_certificate_expired"
	FaultClientCertificate        FaultKind = "client_certificate"
	FaultTLSHandshake             FaultKind = "tls_handshake"
	FaultTLSFiles                 FaultKind = "tls_files"
	FaultCredentials              FaultKind = "credentials"
	FaultCredentialsSource        FaultKind = "credentials_source"
	FaultGuest                    FaultKind = "guest"
	FaultCertificateUser          FaultKind = "certificate_user"
	FaultLoginMechanism           FaultKind = "login_mechanism"
	FaultVhostMissing             FaultKind = "vhost_missing"
	FaultVhostClosed              FaultKind = "vhost_closed"
	FaultVhostDown                FaultKind = "vhost_down"
)

// The kinds of faults of limits, permissions and features.
const (
	FaultConnectionLimit  FaultKind = "connection_limit"
	FaultChannelLimit     FaultKind = "channel_limit"
	FaultChannelMax       FaultKind = "channel_max"
	FaultConsumerLimit    FaultKind = "consumer_limit"
	FaultQueueLimit       FaultKind = "queue_limit"
	FaultPermission       FaultKind = "permission"
	FaultFeatureForbidden FaultKind = "feature_forbidden"
	FaultNotImplemented   FaultKind = "not_implemented"
)

// The kinds of faults of queues.
const (
	FaultQueueMissing     FaultKind = "queue_missing"
	FaultExchangeMissing  FaultKind = "exchange_missing"
	FaultQueueNodeDown    FaultKind = "queue_node_down"
	FaultQueueStopped     FaultKind = "queue_stopped"
	FaultQueueSilent      FaultKind = "queue_silent"
	FaultQueueInUse       FaultKind = "queue_in_use"
	FaultQueueExclusive   FaultKind = "queue_exclusive"
	FaultQueueDiffers     FaultKind = "queue_differs"
	FaultQueueProperties  FaultKind = "queue_properties"
	FaultQueueStream      FaultKind = "queue_stream"
	FaultQueueDeleted     FaultKind = "queue_deleted"
	FaultConsumerCanceled FaultKind = "consumer_canceled"
)

// The kinds of faults of connections that were ready, and what remains.
const (
	FaultBrokerClosed    FaultKind = "broker_closed"
	FaultAckTimeout      FaultKind = "ack_timeout"
	FaultMessageTooLarge FaultKind = "message_too_large"
	FaultMessagesNacked  FaultKind = "messages_nacked"
	FaultServedElsewhere FaultKind = "served_elsewhere"
	FaultChannelClosed   FaultKind = "channel_closed"
	FaultSetUpRefused    FaultKind = "set_up_refused"
	FaultProtocol        FaultKind = "protocol"
	FaultBrokerInternal  FaultKind = "broker_internal"
	FaultLocal           FaultKind = "local"
)

// pace tells how soon the next attempt to connect follows a fault of the set-up.
type pace bool

const (
	// paceQuick is for faults that may pass by themselves: pauses of up to passingFaultMax.
	paceQuick pace = false
	// paceSlow is for faults that last until an operator acts: pauses of the longest backoff.
	paceSlow pace = true
)

// The possible causes of a fault, by responsibility.
const (
	ofNetwork  = "network"
	ofBroker   = "broker"
	ofOperator = "broker's settings"
	ofSettings = "own settings"
	ofOthers   = "other programs"
	ofProgram  = "this program"
)

// faultRow has the text, the responsibility and the pace of one kind of fault. In words,
// {user}, {vhost}, {queue} and {access} are placeholders for names of the attempt to connect.
type faultRow struct {
	kind  FaultKind
	words string
	whose string
	pace  pace
}

// faultTable has a row for every kind of fault. docs/operations.md has the same rows, with the
// action to take, and a test compares the two.
var faultTable = []faultRow{ //nolint:gochecknoglobals // it is constant.
	{FaultHostUnknown, "the host name was not found", ofSettings, paceQuick},
	{FaultUnreachable, "no connection: nothing accepts one at this address", ofNetwork, paceQuick},
	{FaultNoAnswer, "no answer in time", ofNetwork, paceQuick},
	{FaultClosedEarly, "the connection was closed before the broker said anything", ofNetwork, paceQuick},
	{FaultNotAMQP, "the port does not speak AMQP 0-9-1", ofSettings, paceSlow},
	{FaultPortHTTP, "the port speaks HTTP, not AMQP: it may be that of the management UI", ofSettings, paceSlow},
	{FaultPortTLS, "the port speaks TLS: the URL has to begin with amqps://", ofSettings, paceSlow},
	{FaultPortPlain, "the port does not speak TLS: the URL has to begin with amqp://", ofSettings, paceSlow},
	{FaultConnectionLost, "the connection was lost", ofNetwork, paceQuick},
	{FaultUnresponsive, "the broker does not answer", ofBroker, paceQuick},

	{FaultBrokerCertificate, "the broker's TLS certificate was not accepted", ofOperator, paceSlow},
	{FaultClientCertificateMissing, "the broker asks for a client certificate, and there is none", ofSettings, paceSlow},
	{FaultClientCertificateExpired, "the client certificate has expired or is not valid yet", ofSettings, paceSlow},
	{FaultClientCertificate, "the broker does not accept the client certificate", ofSettings, paceSlow},
	{FaultTLSHandshake, "the TLS handshake failed", ofSettings, paceSlow},
	{FaultTLSFiles, "the TLS files cannot be used", ofSettings, paceSlow},
	{FaultCredentials, "wrong user name or password for user {user}", ofSettings, paceSlow},
	{FaultCredentialsSource, "the program's source of credentials failed", ofOthers, paceQuick},
	{FaultGuest, "wrong password for user {user}, or guest may log in from the broker's own machine only", ofSettings, paceSlow},
	{FaultCertificateUser, "the broker has no user with the name in the client certificate", ofOperator, paceSlow},
	{FaultLoginMechanism, "the broker offers no login mechanism that the URL allows", ofOperator, paceSlow},
	{FaultVhostMissing, "virtual host {vhost} does not exist", ofSettings, paceSlow},
	{FaultVhostClosed, "virtual host {vhost} is closed to user {user}", ofOperator, paceSlow},
	{FaultVhostDown, "virtual host {vhost} is down", ofBroker, paceQuick},

	{FaultConnectionLimit, "a limit of connections is reached", ofOperator, paceQuick},
	{FaultChannelLimit, "a limit of channels is reached", ofOperator, paceQuick},
	{FaultChannelMax, "the connection may have too few channels: channel_max is too low", ofOperator, paceSlow},
	{FaultConsumerLimit, "the channel may have too few consumers: consumer_max_per_channel is too low", ofOperator, paceSlow},
	{FaultQueueLimit, "a limit of queues is reached, and queue {queue} would be another one", ofOperator, paceSlow},
	{FaultPermission, "user {user} has no {access} permission", ofOperator, paceSlow},
	{FaultFeatureForbidden, "the broker forbids a feature that was asked for, such as queues that are not durable", ofOperator, paceSlow},
	{FaultNotImplemented, "the broker does not know what was asked of it", ofBroker, paceSlow},

	{FaultQueueMissing, "there is no queue {queue}", ofOthers, paceQuick},
	{FaultExchangeMissing, "there is no exchange of this name", ofOthers, paceQuick},
	{FaultQueueNodeDown, "the node that queue {queue} lives on is down", ofBroker, paceQuick},
	{FaultQueueStopped, "queue {queue} has crashed, or its supervisor has stopped it", ofBroker, paceSlow},
	{FaultQueueSilent, "the broker does not answer for queue {queue}: its node is down, it has no majority, or it was stopped", ofBroker, paceQuick},
	{FaultQueueInUse, "another consumer has queue {queue} for itself", ofOthers, paceQuick},
	{FaultQueueExclusive, "queue {queue} belongs to another connection alone", ofOthers, paceQuick},
	{FaultQueueDiffers, "queue {queue} exists with other properties", ofSettings, paceSlow},
	{FaultQueueProperties, "the broker makes no queue {queue} with these properties", ofSettings, paceSlow},
	{FaultQueueStream, "queue {queue} is a stream: it hands every request to every server", ofOperator, paceSlow},
	{FaultQueueDeleted, "a queue was deleted while it was in use", ofOthers, paceQuick},
	{FaultConsumerCanceled, "the broker ended the subscription: the queue was deleted, or its node went down", ofBroker, paceQuick},

	{FaultBrokerClosed, "the broker closed the connection", ofBroker, paceQuick},
	{FaultAckTimeout, "the broker's consumer_timeout passed: a request was in hand for too long", ofOperator, paceQuick},
	{FaultMessageTooLarge, "a message was larger than the broker takes", ofOperator, paceQuick},
	{FaultMessagesNacked, "the broker nacks every message on this connection", ofBroker, paceQuick},
	{FaultServedElsewhere, "calls get responses by way of another node", ofBroker, paceQuick},
	{FaultChannelClosed, "the broker closed a channel", ofBroker, paceQuick},
	{FaultSetUpRefused, "the broker refused the set-up", ofBroker, paceSlow},
	{FaultProtocol, "the broker and this program do not agree about the protocol", ofBroker, paceQuick},
	{FaultBrokerInternal, "the broker failed in itself", ofBroker, paceQuick},
	{FaultLocal, "the connection was ended by this program", ofProgram, paceQuick},
}

// WordsOf returns the text of a kind. It may have the placeholders {user}, {vhost}, {queue} and
// {access}.
func WordsOf(kind FaultKind) string { return rowOf(kind).words }

// rowOf returns the row of a kind.
func rowOf(kind FaultKind) faultRow {
	for _, row := range faultTable {
		if row.kind == kind {
			return row
		}
	}
	return faultRow{kind: kind, words: string(kind), whose: ofBroker}
}
