package amqpxgrpc

import (
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
)

// address is the address of a peer behind the broker. Its text is no address of a network: of a
// client it is the user of the broker, of a server the server's id.
type address string

func (address) Network() string { return "amqp" }

func (a address) String() string {
	if a == "" {
		return "unknown"
	}
	return string(a)
}

// AuthInfo is the [peer.Peer.AuthInfo] of a caller whose user the broker has validated.
type AuthInfo struct {
	// CommonAuthInfo has the security level of the connection, which is not known: the caller's
	// connection ends at the broker.
	credentials.CommonAuthInfo

	// User is the user of the broker, see [rabbitmq-rpc/pkg/amqpx.Request.User].
	User string
}

// AuthType returns "amqp", as required by [credentials.AuthInfo].
func (AuthInfo) AuthType() string { return "amqp" }

// clientPeer returns the peer in the context of a method: the caller.
func clientPeer(user string) *peer.Peer {
	p := &peer.Peer{Addr: address(user), LocalAddr: address("")}
	if user != "" {
		p.AuthInfo = AuthInfo{User: user}
	}
	return p
}

// serverPeer returns the peer of a call that a server has answered.
func serverPeer(server string) *peer.Peer {
	return &peer.Peer{Addr: address(server), LocalAddr: address("")}
}
