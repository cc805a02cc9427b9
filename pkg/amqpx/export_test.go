package amqpx

// MemoryBroker gives the examples, which see only what is exported, the broker in
// memory.
type MemoryBroker struct{ fake *fakeBroker }

// NewMemoryBroker returns a broker without queues.
func NewMemoryBroker() *MemoryBroker { return &MemoryBroker{newFakeBroker()} }

// Option makes a client or a server use the broker instead of the one at its URL.
func (b *MemoryBroker) Option() Option { return b.fake.option() }

// LoseLink breaks the link of whoever sends the next request, after the request
// arrived and before it is confirmed.
func (b *MemoryBroker) LoseLink() { b.fake.fail(DefaultQueue, faultCutUnconfirmed) }
