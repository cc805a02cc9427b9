package publish

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

// leaflet is a letter that may travel in a bundle.
type leaflet struct{ letter }

func (l *leaflet) BatchKey() string      { return l.key }
func (l *leaflet) Consumers() int        { return 1 }
func (l *leaflet) MustTravelAlone() bool { return false }
func (l *leaflet) NewBatch(string, int, []byte) Batch {
	return &bundle{letter: letter{key: l.key, diary: l.diary}}
}

// bundle is a batch of leaflets.
type bundle struct {
	letter

	size int
}

func (b *bundle) Add(Batchable)       { b.size++ }
func (b *bundle) Fits(Batchable) bool { return true }
func (b *bundle) Size() int           { return b.size }
func (b *bundle) Sent()               { b.diary.note("%d sent", b.size) }
func (b *bundle) Buffer() []byte      { return nil }
func (b *bundle) Reject(error)        {}
func (b *bundle) OnResult(Result)     {}

func (b *bundle) Publishing() (key string, mandatory bool, msg amqp.Publishing) {
	return b.key, true, amqp.Publishing{CorrelationId: fmt.Sprint(b.size)}
}

// postTogether posts n leaflets that the publisher finds at once.
func (o *office) postTogether(n int) {
	outs := make([]Outbound, n)
	for i := range outs {
		outs[i] = &leaflet{letter{key: "q", diary: o.diary}}
	}
	o.outbox.PushFront(outs)
	synctest.Wait()
}

// TestSmallBatchWaitsForAConfirm: the last place in the window is for a batch that is at least
// as large as the batch before it.
func TestSmallBatchWaitsForAConfirm(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		o := newOffice(t)
		o.start()
		o.broker.HoldConfirms()
		o.postTogether(5)
		o.want(t, "5 sent")
		o.postTogether(4)
		o.want(t, "5 sent")
		o.postTogether(1)
		o.want(t, "5 sent, 5 sent")
		o.postTogether(9)
		o.want(t, "5 sent, 5 sent")
		o.broker.ReleaseConfirms()
		o.want(t, "5 sent, 5 sent, 9 sent")
		o.postTogether(2)
		o.want(t, "5 sent, 5 sent, 9 sent, 2 sent")
		o.broker.HoldConfirms()
		o.postTogether(2)
		o.postTogether(2)
		o.want(t, "5 sent, 5 sent, 9 sent, 2 sent, 2 sent, 2 sent")
	})
}

// TestPublisherSpacesItsBatches: while messages arrive one by one, a batch is followed by the next
// after a pause, though the window has room.
func TestPublisherSpacesItsBatches(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		o := newOffice(t)
		arriveOneByOne(t, o.outbox)
		o.start()
		o.postTogether(minSpaced)
		o.want(t, "4 sent")
		put := func() { o.outbox.Put(&leaflet{letter{key: "q", diary: o.diary}}) }
		put()
		put()
		pass(spacing - time.Nanosecond)
		o.want(t, "4 sent")
		pass(time.Nanosecond)
		o.want(t, "4 sent, 2 sent")
	})
}
