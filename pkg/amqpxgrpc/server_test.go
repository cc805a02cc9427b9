package amqpxgrpc

import (
	"context"
	"strings"
	"testing"

	"github.com/fullstorydev/grpchan/grpchantesting"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/descriptorpb"

	"rabbitmq-rpc/pkg/amqpx"
	"rabbitmq-rpc/pkg/amqpx/amqpxtest"
)

// TestRegistrationMistakes: Err and Serve tell each mistake, and the service is not registered.
func TestRegistrationMistakes(t *testing.T) {
	t.Parallel()
	own := grpchantesting.TestService_ServiceDesc
	long := own
	long.ServiceName = strings.Repeat("x", 300)
	for name, c := range map[string]struct {
		register func(*Server)
		want     string
	}{
		"twice": {func(s *Server) {
			registerSuite(s)
			registerSuite(s)
		}, "grpchantesting.TestService is registered twice"},
		"no implementation": {func(s *Server) { s.RegisterService(&own, nil) }, "no implementation"},
		"a wrong type":      {func(s *Server) { s.RegisterService(&own, 1) }, "int does not implement grpchantesting.TestServiceServer"},
		"a long name":       {func(s *Server) { s.RegisterService(&long, &grpchantesting.TestServer{}) }, "method name of"},
	} {
		server, err := amqpx.NewServer(amqpxtest.URL, amqpxtest.NewBroker().Option())
		if err != nil {
			t.Fatal(err)
		}
		s := NewServer(server)
		if err := s.Err(); err != nil {
			t.Errorf("%s: %v before", name, err)
		}
		c.register(s)
		err = s.Serve(t.Context())
		if err == nil || !strings.Contains(err.Error(), c.want) || s.Err() == nil {
			t.Errorf("%s: got %v", name, err)
		}
		if registered := len(s.GetServiceInfo()); registered != 0 && name != "twice" {
			t.Errorf("%s: %d services", name, registered)
		}
	}
}

func TestServiceInfo(t *testing.T) {
	t.Parallel()
	server, err := amqpx.NewServer(amqpxtest.URL, amqpxtest.NewBroker().Option())
	if err != nil {
		t.Fatal(err)
	}
	s := NewServer(server)
	registerSuite(s)
	info := s.GetServiceInfo()["grpchantesting.TestService"]
	kinds := make(map[string]grpc.MethodInfo)
	for _, m := range info.Methods {
		kinds[m.Name] = m
	}
	if len(info.Methods) != 5 || info.Metadata != "test.proto" ||
		kinds["Unary"] != (grpc.MethodInfo{Name: "Unary"}) ||
		kinds["ClientStream"] != (grpc.MethodInfo{Name: "ClientStream", IsClientStream: true}) ||
		kinds["ServerStream"] != (grpc.MethodInfo{Name: "ServerStream", IsServerStream: true}) ||
		kinds["BidiStream"] != (grpc.MethodInfo{Name: "BidiStream", IsClientStream: true, IsServerStream: true}) {
		t.Errorf("got %+v", info)
	}
}

// declare declares a service, as generated code does.
func declare(t *testing.T) {
	t.Helper()
	method := func(name string, level descriptorpb.MethodOptions_IdempotencyLevel) *descriptorpb.MethodDescriptorProto {
		return &descriptorpb.MethodDescriptorProto{
			Name: &name, InputType: new(".google.protobuf.Empty"), OutputType: new(".google.protobuf.Empty"),
			Options: &descriptorpb.MethodOptions{IdempotencyLevel: &level},
		}
	}
	file, err := protodesc.NewFile(&descriptorpb.FileDescriptorProto{
		Name: new("declared.proto"), Package: new("declared"), Dependency: []string{"google/protobuf/empty.proto"},
		Service: []*descriptorpb.ServiceDescriptorProto{{Name: new("Service"), Method: []*descriptorpb.MethodDescriptorProto{
			method("Get", descriptorpb.MethodOptions_NO_SIDE_EFFECTS), method("Put", descriptorpb.MethodOptions_IDEMPOTENT),
			method("Add", descriptorpb.MethodOptions_IDEMPOTENCY_UNKNOWN),
		}}},
	}, protoregistry.GlobalFiles)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := protoregistry.GlobalFiles.FindFileByPath("declared.proto"); err == nil {
		return // of an earlier run
	}
	if err := protoregistry.GlobalFiles.RegisterFile(file); err != nil {
		t.Fatal(err)
	}
}

// TestIdempotency: methods that are not declared idempotent run at most once, and their calls are not
// sent again.
func TestIdempotency(t *testing.T) {
	t.Parallel()
	declare(t)
	var levels idempotencyLevels
	for method, want := range map[string]bool{
		"/declared.Service/Get":             true,
		"/declared.Service/Put":             true,
		"/declared.Service/Add":             false,
		"/grpchantesting.TestService/Unary": false,
		"/no.Service/Method":                false,
		"":                                  false,
		"/grpchantesting.Message":           false, // no method
	} {
		for range 2 { // from the registry, then from memory
			if got := levels.isIdempotent(method); got != want {
				t.Errorf("%q is idempotent: %v", method, got)
			}
		}
	}
	var asked []string
	idempotent := false
	s := &service{unary: func(ctx context.Context, m *grpchantesting.Message) (*grpchantesting.Message, error) {
		req, _ := amqpx.RequestFromContext(ctx)
		idempotent = req.Idempotent
		return m, nil
	}}
	own := IdempotentMethods(func(method string) bool {
		asked = append(asked, method)
		return true
	})
	f := start(t, s.with(setup{client: []ClientOption{own}}))
	client := grpchantesting.NewTestServiceClient(f)
	if _, err := client.Unary(t.Context(), &grpchantesting.Message{}); err != nil || !idempotent || len(asked) != 1 || asked[0] != unaryMethod {
		t.Errorf("asked %q, idempotent: %v, %v", asked, idempotent, err)
	}
	client = grpchantesting.NewTestServiceClient(NewClientConn(f.client))
	if _, err := client.Unary(t.Context(), &grpchantesting.Message{}); err != nil || idempotent {
		t.Errorf("not declared, but idempotent: %v, %v", idempotent, err)
	}
	if _, err := client.Unary(t.Context(), &grpchantesting.Message{}, CallOptions(amqpx.WithIdempotencyKey("key"))); err != nil || !idempotent {
		t.Errorf("with a key, idempotent: %v, %v", idempotent, err)
	}
}

// Requests of different users have different peers, in whatever order they come.
func TestPeersOfUsers(t *testing.T) {
	t.Parallel()
	s := NewServer(nil)
	for _, user := range []string{"a", "a", "b", "", "a"} {
		auth, _ := s.peerOf(user).AuthInfo.(AuthInfo)
		if got := s.peerOf(user); auth.User != user || got.AuthInfo == nil != (user == "") {
			t.Errorf("user %q: %v", user, got)
		}
	}
}
