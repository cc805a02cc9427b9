package amqpxprom

import (
	"slices"
	"sync"
	"sync/atomic"

	"rabbitmq-rpc/pkg/amqpx"
)

// byCode maps codes to series. Every call reads the list, so the list is replaced and never
// modified, and reads take no lock; a list suffices because few codes occur. byCode is safe
// for concurrent use.
type byCode[T any] struct {
	create func(code string) T // must return the same series for the same code
	series atomic.Pointer[[]coded[T]]
	mu     sync.Mutex // held to replace series
}

type coded[T any] struct {
	code   amqpx.Code
	series T
}

func newByCode[T any](create func(code string) T) *byCode[T] {
	b := &byCode[T]{create: create}
	b.series.Store(new([]coded[T]))
	return b
}

func (b *byCode[T]) of(code amqpx.Code) T {
	for _, c := range *b.series.Load() {
		if c.code == code {
			return c.series
		}
	}
	return b.add(code)
}

// add creates the series of a code at its first use. An invalid code is not stored, because
// the number of invalid codes is unbounded.
func (b *byCode[T]) add(code amqpx.Code) T {
	series := b.create(codeText(code))
	if code != "" && !code.Valid() {
		return series
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	now := *b.series.Load()
	if !slices.ContainsFunc(now, func(c coded[T]) bool { return c.code == code }) {
		now = append(slices.Clip(now), coded[T]{code, series})
		b.series.Store(&now)
	}
	return series
}
