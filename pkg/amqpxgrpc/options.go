package amqpxgrpc

import (
	"math"
	"reflect"
	"strings"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"

	"rabbitmq-rpc/pkg/amqpx"
)

// DefaultMaxMessageSize bounds a message that a client receives, in bytes, as in grpc-go;
// [grpc.MaxCallRecvMsgSize] changes it. The limit of [amqpx.WithMaxMessageSize] counts as well.
const DefaultMaxMessageSize = 4 << 20

// ClientOption configures a [ClientConn].
type ClientOption interface{ applyClient(*clientConfig) }

// ServerOption configures a [Server].
type ServerOption interface{ applyServer(*serverConfig) }

// Option configures a [ClientConn] or a [Server].
type Option interface {
	ClientOption
	ServerOption
}

type clientConfig struct {
	unary      []grpc.UnaryClientInterceptor
	stream     []grpc.StreamClientInterceptor
	defaults   []grpc.CallOption
	idempotent func(method string) bool
}

type serverConfig struct {
	unary      []grpc.UnaryServerInterceptor
	stream     []grpc.StreamServerInterceptor
	handle     []func(method string) []amqpx.HandleOption
	idempotent func(method string) bool
}

type clientOption func(*clientConfig)

func (o clientOption) applyClient(c *clientConfig) { o(c) }

type serverOption func(*serverConfig)

func (o serverOption) applyServer(c *serverConfig) { o(c) }

// WithChainUnaryInterceptor adds interceptors of unary calls, the first listed outermost, like the
// option of package grpc. The interceptors get a nil [grpc.ClientConn], because there is none.
func WithChainUnaryInterceptor(interceptors ...grpc.UnaryClientInterceptor) ClientOption {
	return clientOption(func(c *clientConfig) { c.unary = append(c.unary, interceptors...) })
}

// WithChainStreamInterceptor adds interceptors of streams, the first listed outermost, like the
// option of package grpc. The interceptors get a nil [grpc.ClientConn], because there is none.
func WithChainStreamInterceptor(interceptors ...grpc.StreamClientInterceptor) ClientOption {
	return clientOption(func(c *clientConfig) { c.stream = append(c.stream, interceptors...) })
}

// WithDefaultCallOptions sets options for every call; the options of a call apply after them.
func WithDefaultCallOptions(opts ...grpc.CallOption) ClientOption {
	return clientOption(func(c *clientConfig) { c.defaults = append(c.defaults, opts...) })
}

// ChainUnaryInterceptor adds interceptors of unary methods, the first listed outermost, like the
// option of package grpc.
func ChainUnaryInterceptor(interceptors ...grpc.UnaryServerInterceptor) ServerOption {
	return serverOption(func(c *serverConfig) { c.unary = append(c.unary, interceptors...) })
}

// ChainStreamInterceptor adds interceptors of streaming methods, the first listed outermost, like
// the option of package grpc.
func ChainStreamInterceptor(interceptors ...grpc.StreamServerInterceptor) ServerOption {
	return serverOption(func(c *serverConfig) { c.stream = append(c.stream, interceptors...) })
}

// HandleOptions gives methods options of package amqpx. The function is called once for each
// method, with its full name such as "/orders.Orders/Create", when its service is registered.
func HandleOptions(of func(method string) []amqpx.HandleOption) ServerOption {
	return serverOption(func(c *serverConfig) { c.handle = append(c.handle, of) })
}

// idempotentOption is the option of IdempotentMethods.
type idempotentOption func(method string) bool

func (o idempotentOption) applyClient(c *clientConfig) { c.idempotent = o }
func (o idempotentOption) applyServer(c *serverConfig) { c.idempotent = o }

// IdempotentMethods decides which methods may run twice for one call. A client sends calls of
// these methods again when a connection is lost ([amqpx.Idempotent]), and a server runs them again
// when another server was lost with the request. All other methods run at most once, as with gRPC
// over HTTP/2: after such a loss the call fails with [codes.Unavailable] ([amqpx.AtMostOnce]). The
// function gets the full name of a method, such as "/orders.Orders/Create", is called for every
// call, and concurrently.
//
// The default is the option idempotency_level of the method in the .proto file, of NO_SIDE_EFFECTS
// or IDEMPOTENT, if the program has the generated code of the service.
func IdempotentMethods(decide func(method string) bool) Option { return idempotentOption(decide) }

// amqpxOption is the call option of CallOptions.
type amqpxOption struct {
	grpc.EmptyCallOption

	options []amqpx.CallOption
}

// CallOptions passes options of package amqpx to a call that is made with generated code, such as
// [amqpx.WithIdempotencyKey] or [amqpx.WithShardKey]. Headers of [amqpx.WithHeader] are sent beside
// the metadata. gRPC itself ignores the option.
func CallOptions(opts ...amqpx.CallOption) grpc.CallOption { return amqpxOption{options: opts} }

// callSettings is the effect of the options of one call.
type callSettings struct {
	headers, trailers []*metadata.MD
	peers             []*peer.Peer
	onFinish          []func(error)
	credentials       []credentials.PerRPCCredentials
	options           []amqpx.CallOption

	waitForReady     bool
	maxRecv, maxSend int

	codec   encoding.CodecV2
	subtype string
}

// newCallSettings applies options. A settings value is returned with an error as well, because the
// functions of [grpc.OnFinish] must be called.
func newCallSettings(opts []grpc.CallOption) (*callSettings, error) {
	s, _ := unusedSettings.Get().(*callSettings)
	s.maxRecv, s.maxSend = DefaultMaxMessageSize, math.MaxInt32
	var refusal error
	for _, o := range opts {
		if err := s.apply(o); err != nil && refusal == nil {
			refusal = err
		}
	}
	if refusal != nil {
		return s, refusal
	}
	if s.codec == nil {
		if s.subtype == "" {
			s.subtype = proto.Name
		}
		var err error
		if s.codec, err = codecNamed(s.subtype); err != nil {
			return s, refused(codes.Internal, "%w", err)
		}
	} else if s.subtype == "" {
		s.subtype = strings.ToLower(s.codec.Name())
	}
	return s, nil
}

// unusedSettings has memory for settings.
//
//nolint:gochecknoglobals // every caller may use every element.
var unusedSettings = sync.Pool{New: func() any { return new(callSettings) }}

// release lets a later call use the memory of settings that nobody uses any more.
func (s *callSettings) release() {
	*s = callSettings{}
	unusedSettings.Put(s)
}

// apply applies one option. Options can only be told apart by their type.
func (s *callSettings) apply(option grpc.CallOption) error {
	switch o := option.(type) {
	case grpc.HeaderCallOption:
		s.headers = append(s.headers, o.HeaderAddr)
	case grpc.TrailerCallOption:
		s.trailers = append(s.trailers, o.TrailerAddr)
	case grpc.PeerCallOption:
		s.peers = append(s.peers, o.PeerAddr)
	case grpc.OnFinishCallOption:
		s.onFinish = append(s.onFinish, o.OnFinish)
	case grpc.FailFastCallOption:
		s.waitForReady = !o.FailFast
	case grpc.MaxRecvMsgSizeCallOption:
		s.maxRecv = o.MaxRecvMsgSize
	case grpc.MaxSendMsgSizeCallOption:
		s.maxSend = o.MaxSendMsgSize
	case grpc.ContentSubtypeCallOption:
		s.subtype = o.ContentSubtype
	case grpc.ForceCodecCallOption:
		s.codec = codecV1{o.Codec}
	case grpc.ForceCodecV2CallOption:
		s.codec = o.CodecV2
	case grpc.PerRPCCredsCallOption:
		return s.applyCredentials(o.Creds)
	case grpc.CompressorCallOption:
		if o.CompressorType != "" && o.CompressorType != encoding.Identity {
			return refused(codes.Unimplemented, "grpc.UseCompressor(%q) is not supported", o.CompressorType)
		}
	case amqpxOption:
		s.options = append(s.options, o.options...)
	case grpc.EmptyCallOption, grpc.StaticMethodCallOption, grpc.MaxRetryRPCBufferSizeCallOption: // without effect
	case nil:
		return refused(codes.InvalidArgument, "a call option is nil")
	default:
		// Options of other packages embed grpc.EmptyCallOption and are for interceptors.
		if t := reflect.TypeOf(option); t.PkgPath() == reflect.TypeFor[grpc.EmptyCallOption]().PkgPath() {
			return refused(codes.Unimplemented, "the call option %v is not supported", t)
		}
	}
	return nil
}

// applyCredentials refuses credentials that may not travel over a connection without TLS from the
// client to the server: here TLS, if any, ends at the broker.
func (s *callSettings) applyCredentials(c credentials.PerRPCCredentials) error {
	if c == nil {
		return nil
	}
	if c.RequireTransportSecurity() {
		return refused(codes.Unauthenticated, "the credentials %T require transport security between client and server, which a broker cannot give: send a token as metadata instead", c)
	}
	s.credentials = append(s.credentials, c)
	return nil
}

// finish calls the functions of [grpc.OnFinish].
func (s *callSettings) finish(err error) {
	for _, f := range s.onFinish {
		f(err)
	}
}
