package amqpxgrpc

import (
	"strings"
	"sync"

	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/descriptorpb"
)

// idempotencyLevels knows which methods are declared idempotent in their .proto file. It is safe for
// concurrent use.
type idempotencyLevels struct {
	known sync.Map // the methods of this program's generated code, from full name to bool
}

// isIdempotent reports whether a method, such as "/orders.Orders/Get", is declared idempotent.
func (l *idempotencyLevels) isIdempotent(method string) bool {
	if known, ok := l.known.Load(method); ok {
		idempotent, _ := known.(bool)
		return idempotent
	}
	name := protoreflect.FullName(strings.ReplaceAll(strings.TrimPrefix(method, "/"), "/", "."))
	found, err := protoregistry.GlobalFiles.FindDescriptorByName(name)
	if err != nil {
		return false // not stored: any name may be called
	}
	options, _ := found.Options().(*descriptorpb.MethodOptions)
	idempotent := options.GetIdempotencyLevel() != descriptorpb.MethodOptions_IDEMPOTENCY_UNKNOWN
	l.known.Store(method, idempotent)
	return idempotent
}
