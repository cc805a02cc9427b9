package amqpxgrpc

import (
	"maps"
	"strings"
	"sync"
	"sync/atomic"

	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/descriptorpb"
)

// idempotencyLevels knows which methods are declared idempotent in their .proto file. It is safe for
// concurrent use.
type idempotencyLevels struct {
	// known has the methods of this program's generated code by their full names. The map does not
	// change: a further method makes a new one.
	known atomic.Pointer[map[string]bool]
	mu    sync.Mutex // held to replace known
}

// isIdempotent reports whether a method, such as "/orders.Orders/Get", is declared idempotent.
func (l *idempotencyLevels) isIdempotent(method string) bool {
	if known := l.known.Load(); known != nil {
		if idempotent, ok := (*known)[method]; ok {
			return idempotent
		}
	}
	name := protoreflect.FullName(strings.ReplaceAll(strings.TrimPrefix(method, "/"), "/", "."))
	found, err := protoregistry.GlobalFiles.FindDescriptorByName(name)
	if err != nil {
		return false // not stored: any name may be called
	}
	options, _ := found.Options().(*descriptorpb.MethodOptions)
	idempotent := options.GetIdempotencyLevel() != descriptorpb.MethodOptions_IDEMPOTENCY_UNKNOWN
	l.add(method, idempotent)
	return idempotent
}

// add adds a method to known.
func (l *idempotencyLevels) add(method string, idempotent bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	more := make(map[string]bool)
	if known := l.known.Load(); known != nil {
		more = maps.Clone(*known)
	}
	more[method] = idempotent
	l.known.Store(&more)
}
