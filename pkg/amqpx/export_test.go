package amqpx

// MemoryBroker is the broker in memory for the examples, which can use only exported names.
type MemoryBroker struct{ fake *fakeBroker }

// NewMemoryBroker returns a broker without queues.
func NewMemoryBroker() *MemoryBroker { return &MemoryBroker{newFakeBroker()} }

// Option makes a client or a server use this broker and ignore its URL.
func (b *MemoryBroker) Option() Option { return b.fake.option() }

// LoseLink breaks the sender's connection at the next request, after the request has arrived
// and before its confirm.
func (b *MemoryBroker) LoseLink() { b.fake.fail(DefaultQueue, faultCutUnconfirmed) }
