package transport

import (
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"

	amqp "github.com/rabbitmq/amqp091-go"
)

// confirmModel is the specification of confirmations: a message has the number of the messages
// written before it, plus 1, and the first confirm of its number counts.
type confirmModel struct {
	pending []*confirmation
	acked   []bool
	done    []bool
}

func (m *confirmModel) confirm(tag uint64, multiple, acked bool) {
	if tag == 0 || tag > uint64(len(m.done)) {
		return
	}
	first := tag
	if multiple {
		first = 1
	}
	for i := first - 1; i < tag; i++ {
		if !m.done[i] {
			m.done[i], m.acked[i] = true, acked
		}
	}
}

func (m *confirmModel) check(t *testing.T) {
	t.Helper()
	for i, c := range m.pending {
		select {
		case <-c.Done():
			if !m.done[i] || c.Acked() != m.acked[i] {
				t.Fatalf("message %d is done with %v, want %v, %v", i+1, c.Acked(), m.done[i], m.acked[i])
			}
		default:
			if m.done[i] {
				t.Fatalf("message %d is not done", i+1)
			}
		}
	}
}

func TestConfirmsAgainstAModel(t *testing.T) {
	t.Parallel()
	for seed := range uint64(300) {
		r := rand.New(rand.NewPCG(seed, 0))
		var c confirmations
		var m confirmModel
		for range 200 {
			switch n := uint64(len(m.pending)); r.IntN(10) {
			case 0, 1, 2, 3:
				pending, ok := c.add()
				wantSame(t, "open", ok, true)
				if r.IntN(5) == 0 {
					c.takeBack(pending)
					continue
				}
				m.pending, m.acked, m.done = append(m.pending, pending), append(m.acked, false), append(m.done, false)
			default:
				tag := r.Uint64N(n + 3) // 0 and two unknown numbers too
				if n > 8 && r.IntN(3) > 0 {
					tag = n - r.Uint64N(8)
				}
				if r.IntN(50) == 0 {
					tag = r.Uint64()
				}
				multiple, acked := r.IntN(4) == 0, r.IntN(4) > 0
				c.confirm(tag, multiple, acked)
				m.confirm(tag, multiple, acked)
			}
			m.check(t)
		}
		c.end()
		for i := range m.done {
			m.done[i] = true
		}
		m.check(t)
		c.confirm(1, true, true)
		c.end()
		if _, ok := c.add(); ok {
			t.Error("a message after the end")
		}
	}
}

func tagged(tag uint64) *amqp.Delivery {
	return &amqp.Delivery{DeliveryTag: tag, Body: make([]byte, 1)}
}

// queueUnderTest returns a queue, the end of its channel, and the tags of unread deliveries.
func queueUnderTest() (q *deliveryQueue, over chan struct{}, unread func() []uint64) {
	var mu sync.Mutex
	var tags []uint64
	over = make(chan struct{})
	q = newDeliveryQueue("t", over, func(d *amqp.Delivery) {
		mu.Lock()
		defer mu.Unlock()
		tags = append(tags, d.DeliveryTag)
	})
	return q, over, func() []uint64 {
		mu.Lock()
		defer mu.Unlock()
		return tags
	}
}

// wantTags checks that tags are first, first+1 and so on, up to last.
func wantTags(t *testing.T, what string, tags []uint64, first, last uint64) {
	t.Helper()
	wantSame(t, what+": number", uint64(len(tags)), last-first+1)
	for i, tag := range tags {
		if tag != first+uint64(i) {
			t.Fatalf("%s: %d at position %d, want %d", what, tag, i, first+uint64(i))
		}
	}
}

func received(q *deliveryQueue) (tags []uint64) {
	for d := range q.out {
		tags = append(tags, d.DeliveryTag)
	}
	return tags
}

// The end of a consumer loses no delivery that came before, as with amqp091-go.
func TestQueuedDeliveriesOutliveTheirConsumer(t *testing.T) {
	t.Parallel()
	for _, n := range []uint64{1, deliveryBuffer, deliveryBuffer + 1, 1000} {
		synctest.Test(t, func(t *testing.T) {
			q, _, unread := queueUnderTest()
			for tag := uint64(1); tag <= n; tag++ {
				q.put(tagged(tag))
			}
			q.end()
			settle()
			q.put(tagged(n + 1))
			wantTags(t, "received", received(q), 1, n)
			wantTags(t, "unread", unread(), n+1, n+1)
		})
	}
}

// The end of the channel ends the goroutine that waits for the receiver.
func TestQueuedDeliveriesAtTheEndOfTheChannel(t *testing.T) {
	t.Parallel()
	for _, consumerFirst := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			const n = 1000
			q, over, unread := queueUnderTest()
			for tag := range uint64(n) {
				q.put(tagged(tag + 1))
			}
			settle()
			if consumerFirst {
				q.end()
			}
			close(over)
			settle()
			if !consumerFirst {
				q.end()
			}
			wantTags(t, "unread", unread(), deliveryBuffer+1, n)
			wantTags(t, "received", received(q), 1, deliveryBuffer)
		})
	}
}

func TestEachDeliveryIsHandedOutOrUnread(t *testing.T) {
	t.Parallel()
	for seed := range uint64(200) {
		r := rand.New(rand.NewPCG(seed, 1))
		n, ends, breaks := uint64(r.IntN(400)), uint64(r.IntN(400)), uint64(r.IntN(600))
		q, over, unread := queueUnderTest()
		got := make(chan []uint64)
		go func() { got <- received(q) }()
		var ended, broken bool
		for tag := range n {
			if tag == ends {
				ended = true
				q.end()
			}
			if tag == breaks {
				broken = true
				close(over)
			}
			q.put(tagged(tag + 1))
		}
		if !broken {
			defer close(over)
		}
		if !ended {
			q.end()
		}
		tags := <-got
		for i := range tags[min(1, len(tags)):] {
			if tags[i] >= tags[i+1] {
				t.Fatalf("%d before %d", tags[i], tags[i+1])
			}
		}
		lost := unread()
		seen := make(map[uint64]bool)
		for _, tag := range append(tags, lost...) {
			if seen[tag] {
				t.Fatalf("%d twice", tag)
			}
			seen[tag] = true
		}
		wantSame(t, "deliveries", uint64(len(seen)), n)
		if !broken && ends >= n {
			wantSame(t, "unread", len(lost), 0)
		}
	}
}
