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

// callerPeer is the peer for the requests of a user.
type callerPeer struct {
	peer.Peer
	user string
}

// peerOf returns the peer in the context of a method: the caller. Nobody changes a peer, so that
// requests share it.
func (s *Server) peerOf(user string) *peer.Peer {
	if last := s.lastCaller.Load(); last != nil && last.user == user {
		return &last.Peer
	}
	p := &callerPeer{user: user, Peer: peer.Peer{Addr: address(user), LocalAddr: address("")}}
	if user != "" {
		p.AuthInfo = AuthInfo{User: user}
	}
	s.lastCaller.Store(p)
	return &p.Peer
}

// serverPeer returns the peer of a call that a server has answered.
func serverPeer(server string) *peer.Peer {
	return &peer.Peer{Addr: address(server), LocalAddr: address("")}
}
