package amqpxgrpc

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"sync"
	"sync/atomic"

	"google.golang.org/grpc"

	"rabbitmq-rpc/pkg/amqpx"
)

// Server registers the services of generated code at a server of package amqpx. It implements
// [grpc.ServiceRegistrar], and the interface that package reflection of grpc-go requires. All
// methods are safe for concurrent use.
type Server struct {
	server *amqpx.Server
	cfg    serverConfig
	unary  grpc.UnaryServerInterceptor  // all interceptors together; nil: none
	stream grpc.StreamServerInterceptor // the same for streams
	// lastCaller is the peer of the last request: most services have few callers.
	lastCaller atomic.Pointer[callerPeer]

	mu       sync.Mutex
	services map[string]*grpc.ServiceDesc
	faults   []error
}

var _ grpc.ServiceRegistrar = (*Server)(nil)

// NewServer returns a Server that registers services at the server:
//
//	services := amqpxgrpc.NewServer(server)
//	pb.RegisterOrdersServer(services, orders)
//	err := services.Serve(ctx)
//
// Methods of the server that are no methods of gRPC ([amqpx.Server.Handle]) may exist beside them.
func NewServer(server *amqpx.Server, opts ...ServerOption) *Server {
	s := &Server{server: server, services: make(map[string]*grpc.ServiceDesc)}
	for _, o := range opts {
		if o != nil {
			o.applyServer(&s.cfg)
		}
	}
	if s.cfg.idempotent == nil {
		s.cfg.idempotent = new(idempotencyLevels).isIdempotent
	}
	s.unary = chainUnary(s.cfg.unary)
	s.stream = chainStream(s.cfg.stream)
	return s
}

// chainUnary returns one interceptor for several, or nil.
func chainUnary(interceptors []grpc.UnaryServerInterceptor) grpc.UnaryServerInterceptor {
	if len(interceptors) == 0 {
		return nil
	}
	return func(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
		for _, interceptor := range slices.Backward(interceptors) {
			next := handler
			handler = func(ctx context.Context, req any) (any, error) { return interceptor(ctx, req, info, next) }
		}
		return handler(ctx, req)
	}
}

// RegisterService registers the methods of a service, before the call of Serve. Generated code calls
// it. A mistake, such as a service that is registered twice, is an error of Serve and Err.
func (s *Server) RegisterService(desc *grpc.ServiceDesc, impl any) {
	if !s.reserve(desc) {
		s.note(fmt.Errorf("amqpxgrpc: service %s is registered twice", desc.ServiceName))
		return
	}
	if err := s.register(desc, impl); err != nil {
		s.note(err)
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.services, desc.ServiceName)
	}
}

// reserve stores the service, unless there is one with its name.
func (s *Server) reserve(desc *grpc.ServiceDesc) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.services[desc.ServiceName] != nil {
		return false
	}
	s.services[desc.ServiceName] = desc
	return true
}

// note keeps a mistake for Err.
func (s *Server) note(fault error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults = append(s.faults, fault)
}

// register registers the methods of a service at the server.
func (s *Server) register(desc *grpc.ServiceDesc, impl any) error {
	name := desc.ServiceName
	if impl == nil {
		return fmt.Errorf("amqpxgrpc: service %s: no implementation", name)
	}
	if desc.HandlerType != nil {
		if wanted, found := reflect.TypeOf(desc.HandlerType).Elem(), reflect.TypeOf(impl); !found.Implements(wanted) {
			return fmt.Errorf("amqpxgrpc: service %s: %v does not implement %v", name, found, wanted)
		}
	}
	var faults []error
	for i := range desc.Methods {
		m := &desc.Methods[i]
		method := "/" + name + "/" + m.MethodName
		faults = append(faults, s.server.Handle(method, s.unaryHandler(method, m, impl), s.handleOptions(method)...))
	}
	for i := range desc.Streams {
		m := &desc.Streams[i]
		method := "/" + name + "/" + m.StreamName
		faults = append(faults, s.server.HandleStream(method, s.streamHandler(method, m, impl), s.handleOptions(method)...))
	}
	if err := errors.Join(faults...); err != nil {
		return fmt.Errorf("amqpxgrpc: service %s: %w", name, err)
	}
	return nil
}

// handleOptions returns the options of a method for the server.
func (s *Server) handleOptions(method string) []amqpx.HandleOption {
	var options []amqpx.HandleOption
	if !s.cfg.idempotent(method) {
		options = append(options, amqpx.AtMostOnce())
	}
	for _, of := range s.cfg.handle {
		options = append(options, of(method)...)
	}
	return options
}

// Err returns the mistakes in the calls of RegisterService; nil if there are none.
func (s *Server) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return errors.Join(s.faults...)
}

// Serve returns the mistakes in the calls of RegisterService. If there are none, it calls
// [amqpx.Server.Serve], which handles calls until ctx ends. A program that calls that method itself
// should look at Err before.
func (s *Server) Serve(ctx context.Context) error {
	if err := s.Err(); err != nil {
		return err
	}
	return s.server.Serve(ctx)
}

// GetServiceInfo returns the registered services by their names, for packages reflection and
// channelz of grpc-go.
func (s *Server) GetServiceInfo() map[string]grpc.ServiceInfo {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make(map[string]grpc.ServiceInfo, len(s.services))
	for name, desc := range s.services {
		methods := make([]grpc.MethodInfo, 0, len(desc.Methods)+len(desc.Streams))
		for _, m := range desc.Methods {
			methods = append(methods, grpc.MethodInfo{Name: m.MethodName})
		}
		for _, m := range desc.Streams {
			methods = append(methods, grpc.MethodInfo{Name: m.StreamName, IsClientStream: m.ClientStreams, IsServerStream: m.ServerStreams})
		}
		all[name] = grpc.ServiceInfo{Methods: methods, Metadata: desc.Metadata}
	}
	return all
}

// unaryHandler returns the handler of a unary method.
func (s *Server) unaryHandler(method string, desc *grpc.MethodDesc, impl any) amqpx.Handler {
	return func(ctx context.Context, req *amqpx.Request) ([]byte, error) {
		codec, err := codecOf(req.ContentType)
		if err != nil {
			return nil, amqpx.Refuse(amqpx.CodeInvalidArgument, "%w", err)
		}
		c := &unaryCall{stream: unaryTransportStream{transportStream{method: method}, ctx}}
		if err := s.initContext(ctx, &c.ctx, req, &c.stream); err != nil {
			return nil, err
		}
		decode := func(message any) error {
			if err := unmarshal(codec, req.Body, message); err != nil {
				return amqpx.Refuse(amqpx.CodeInvalidArgument, "the request is no message of the method's type: %w", err)
			}
			return nil
		}
		response, err := desc.Handler(impl, c.ctx.complete(), decode, s.unary) //nolint:contextcheck // it is ctx's child.
		c.stream.end()
		if err != nil {
			return nil, handlerError(err)
		}
		body, err := marshal(codec, response)
		if err != nil {
			return nil, amqpx.Errorf(amqpx.CodeInternal, "error while marshaling: %w", err)
		}
		return body, nil
	}
}

// unaryCall has what a call of a unary method needs, in one allocation.
type unaryCall struct {
	ctx    handlerContext
	stream unaryTransportStream
}
