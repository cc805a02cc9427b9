package amqpxgrpc

import (
	"context"
	"slices"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"

	"rabbitmq-rpc/pkg/amqpx"
)

// ClientConn makes the calls of generated clients over a client of package amqpx. It implements
// [grpc.ClientConnInterface], has no connection or goroutine of its own, and needs no closing. All
// methods are safe for concurrent use.
type ClientConn struct {
	client *amqpx.Client
	cfg    clientConfig
}

var _ grpc.ClientConnInterface = (*ClientConn)(nil)

// NewClientConn returns a ClientConn that makes calls with the client:
//
//	orders := pb.NewOrdersClient(amqpxgrpc.NewClientConn(client))
func NewClientConn(client *amqpx.Client, opts ...ClientOption) *ClientConn {
	c := &ClientConn{client: client}
	for _, o := range opts {
		if o != nil {
			o.applyClient(&c.cfg)
		}
	}
	if c.cfg.idempotent == nil {
		c.cfg.idempotent = new(idempotencyLevels).isIdempotent
	}
	return c
}

// Invoke makes a unary call, as generated code does. An error has a status of gRPC with the code of
// the failure, and [amqpx.OutcomeOf] tells whether a server may have run the call. Without a
// deadline the call has the deadline of the client ([amqpx.WithTimeout]).
func (c *ClientConn) Invoke(ctx context.Context, method string, args, reply any, opts ...grpc.CallOption) error {
	opts = c.withDefaults(opts)
	if len(c.cfg.unary) == 0 {
		return c.invoke(ctx, method, args, reply, nil, opts...)
	}
	invoke := grpc.UnaryInvoker(c.invoke)
	for _, interceptor := range slices.Backward(c.cfg.unary) {
		next := invoke
		invoke = func(ctx context.Context, method string, args, reply any, cc *grpc.ClientConn, opts ...grpc.CallOption) error {
			return interceptor(ctx, method, args, reply, cc, next, opts...)
		}
	}
	return invoke(ctx, method, args, reply, nil, opts...)
}

// withDefaults returns the default options and a call's own.
func (c *ClientConn) withDefaults(opts []grpc.CallOption) []grpc.CallOption {
	if len(c.cfg.defaults) == 0 {
		return opts
	}
	return slices.Concat(c.cfg.defaults, opts)
}

// invoke is the innermost [grpc.UnaryInvoker].
func (c *ClientConn) invoke(ctx context.Context, method string, args, reply any, _ *grpc.ClientConn, opts ...grpc.CallOption) error {
	s, err := newCallSettings(opts)
	if err == nil {
		err = c.call(ctx, fullName(method), args, reply, s)
	}
	s.finish(err)
	s.release()
	return err
}

// call makes a unary call.
func (c *ClientConn) call(ctx context.Context, method string, args, reply any, s *callSettings) error {
	body, err := marshal(s.codec, args)
	if err = s.checkSent(body, err); err != nil {
		return err
	}
	options, err := callOptions(ctx, method, s)
	if err != nil {
		return err
	}
	if c.cfg.idempotent(method) {
		options = append(options, amqpx.Idempotent())
	}
	var info *amqpx.CallInfo
	if len(s.headers)+len(s.trailers)+len(s.peers) > 0 {
		info = new(amqpx.CallInfo)
		options = append(options, amqpx.WithCallInfo(info))
	}
	response, err := c.client.Call(ctx, method, body, options...)
	if info != nil {
		if invalid := s.describe(info); invalid != nil && err == nil {
			return localError(codes.Internal, "%w", invalid)
		}
	}
	if err != nil {
		return newCallError(err)
	}
	return s.decode(response, reply)
}

// checkSent returns the error of a call whose message cannot be encoded, because of err, or is too
// large.
func (s *callSettings) checkSent(body []byte, err error) error {
	switch {
	case err != nil:
		return refused(codes.Internal, "error while marshaling: %w", err)
	case len(body) > s.maxSend:
		return refused(codes.ResourceExhausted, "trying to send message larger than max (%d vs. %d)", len(body), s.maxSend)
	}
	return nil
}

// decode sets a message to a received one.
func (s *callSettings) decode(body []byte, message any) error {
	if len(body) > s.maxRecv {
		return localError(codes.ResourceExhausted, "received message larger than max (%d vs. %d)", len(body), s.maxRecv)
	}
	if err := unmarshal(s.codec, body, message); err != nil {
		return localError(codes.Internal, "failed to unmarshal the received message: %w", err)
	}
	return nil
}

// callOptions returns the options of a call or stream for the client.
func callOptions(ctx context.Context, method string, s *callSettings) ([]amqpx.CallOption, error) {
	header, err := requestHeader(ctx, method, s)
	if err != nil {
		return nil, err
	}
	var options []amqpx.CallOption
	if len(header) > 0 {
		options = append(options, amqpx.WithHeader(header))
	}
	if t := contentType(s.subtype); t != "" {
		options = append(options, amqpx.WithContentType(t, ""))
	}
	if s.waitForReady {
		options = append(options, amqpx.WaitForServer())
	}
	return append(options, s.options...), nil
}

// requestHeader returns the metadata of a call as headers; nil if there is none.
func requestHeader(ctx context.Context, method string, s *callSettings) (map[string]any, error) {
	md, _ := metadata.FromOutgoingContext(ctx)
	for _, c := range s.credentials {
		service, _, _ := strings.Cut(strings.TrimPrefix(method, "/"), "/")
		own, err := c.GetRequestMetadata(ctx, "amqp:///"+service)
		if err != nil {
			if hasStatus(err) {
				return nil, err
			}
			return nil, refused(codes.Unauthenticated, "per-RPC credentials: %w", err)
		}
		if md == nil {
			md = make(metadata.MD, len(own))
		}
		for key, value := range own {
			md.Append(key, value)
		}
	}
	if len(md) == 0 {
		return nil, nil
	}
	if err := checkMetadata(md); err != nil {
		return nil, refused(codes.Internal, "%w", err)
	}
	return encodeHeader(md), nil
}

// describe sets the variables of [grpc.Header], [grpc.Trailer] and [grpc.Peer].
func (s *callSettings) describe(info *amqpx.CallInfo) error {
	response := info.Response
	if response == nil {
		response = &amqpx.Response{}
	}
	header, err := decodeHeader(response.Header)
	if err != nil {
		return err
	}
	trailer, err := decodeHeader(response.Trailer)
	if err != nil {
		return err
	}
	s.set(header, trailer, info.Server)
	return nil
}

// set sets the variables of [grpc.Header], [grpc.Trailer] and [grpc.Peer].
func (s *callSettings) set(header, trailer metadata.MD, server string) {
	for _, md := range s.headers {
		*md = header.Copy()
	}
	for _, md := range s.trailers {
		*md = trailer.Copy()
	}
	for _, p := range s.peers {
		*p = *serverPeer(server)
	}
}

// fullName returns a method's name with the slash before the service that generated code has.
func fullName(method string) string {
	if strings.HasPrefix(method, "/") {
		return method
	}
	return "/" + method
}
