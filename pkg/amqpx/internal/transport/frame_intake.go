package transport

import (
	"encoding/binary"
	"slices"
	"sync/atomic"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

// intake takes deliveries and confirms off the stream for amqp091-go, and passes them to the open
// channels. In amqp091-go a frame costs reflection, several allocations, and a wake-up of each of
// three goroutines. Only the frame reader uses intake.
type intake struct {
	assembling map[uint16]*assembly // by channel
	body       *assembly            // the delivery whose body frame is being read; nil: none
	left       int                  // bytes of this frame still to come
	// yield makes Read return the bytes before the next frame.
	yield    bool
	passedAt time.Time     // when bytes last passed to amqp091-go
	frames   atomic.Uint64 // the number of taken frames
}

// assembly is a delivery whose content has not arrived in full.
type assembly struct {
	channel  *netChannel
	queue    *deliveryQueue
	delivery amqp.Delivery
	headed   bool   // the content header has arrived
	size     uint64 // of the body
}

const (
	// maxTakenMethod bounds the size of the methods that are taken: basic.deliver has three
	// short strings.
	maxTakenMethod = 1024
	// maxFirstBody bounds the memory for a body before its bytes have arrived.
	maxFirstBody = 1 << 20
	// libraryPause is the time for which amqp091-go may get no bytes while frames are taken.
	// After this time amqp091-go gets a heartbeat, or it would consider the broker dead: the
	// library allows one and a half heartbeat intervals, of at least a second each, and the
	// broker may be silent for one interval after the last taken frame.
	libraryPause = 100 * time.Millisecond
)

// takeMethod takes the next frame, a method, if it is a confirm or a delivery to a known
// consumer, and reports whether it did. A confirm must not overtake the return of its message.
// So a confirm is taken only if first is true: amqp091-go has handled all earlier frames.
// Otherwise Read first returns the earlier frames to amqp091-go.
func (f *frameReader) takeMethod(channel uint16, size int, first bool) (taken bool, err error) {
	f.dropAssembly(channel)
	if size < 4 || size > maxTakenMethod {
		return false, nil
	}
	head, err := f.r.Peek(frameHeaderBytes + 4)
	if err != nil {
		return false, err
	}
	class, method := binary.BigEndian.Uint16(head[frameHeaderBytes:]), binary.BigEndian.Uint16(head[frameHeaderBytes+2:])
	if class == classChannel && method == channelOpenOK {
		f.channels.opened.Store(uint32(channel))
	}
	ch := f.channels.get(channel)
	if ch == nil || class != classBasic || method != basicDeliver && method != basicAck && method != basicNack {
		return false, nil
	}
	frame, err := f.r.Peek(frameOverhead + size)
	if err != nil {
		return false, err
	}
	args := fieldReader{b: frame[frameHeaderBytes+4 : frameHeaderBytes+size]}
	switch {
	case method == basicDeliver:
		taken = f.takeDelivery(ch, &args)
	case first:
		taken = true
		tag, bits := args.uint64(), args.octet()
		if !args.bad {
			ch.confirms.confirm(tag, bits&1 != 0, method == basicAck)
		}
	default:
		f.intake.yield = true
		return true, nil
	}
	if args.bad || frame[len(frame)-1] != frameEnd {
		return false, errFrame
	}
	if taken {
		f.discard = len(frame)
		f.countTaken()
	}
	return taken, nil
}

// dropAssembly drops the incomplete delivery of a channel: after another method of the channel
// the rest of the content will not come.
func (f *frameReader) dropAssembly(channel uint16) {
	a, ok := f.intake.assembling[channel]
	if !ok {
		return
	}
	delete(f.intake.assembling, channel)
	if a.headed {
		f.bodiesOf(channel).releaseUnread(a.queue.tag, int64(a.size)) //nolint:gosec // it fits, or would not have been taken.
	}
}

// takeDelivery begins a delivery. If the consumer is not known, takeDelivery returns false, and the
// delivery belongs to amqp091-go.
func (f *frameReader) takeDelivery(ch *netChannel, args *fieldReader) bool {
	queue := ch.consumerOf(args.shortString())
	if queue == nil {
		return false
	}
	a := &assembly{channel: ch, queue: queue}
	a.delivery.Acknowledger, a.delivery.ConsumerTag = ch, queue.tag
	args.delivery(&a.delivery, &ch.last)
	if f.intake.assembling == nil {
		f.intake.assembling = make(map[uint16]*assembly)
	}
	f.intake.assembling[ch.id] = a
	return true
}

// countTaken counts a taken frame.
func (f *frameReader) countTaken() {
	f.intake.frames.Add(1)
	if now := time.Now(); now.Sub(f.intake.passedAt) > libraryPause {
		f.intake.passedAt = now
		f.out = heartbeatFrame
	}
}

// takeHeader takes the content header of a delivery.
func (f *frameReader) takeHeader(a *assembly, frame []byte) error {
	if len(frame) < flagsAt+2+1 || frame[len(frame)-1] != frameEnd || a.headed {
		return errFrame
	}
	fields := fieldReader{b: frame[flagsAt : len(frame)-1]}
	fields.properties(&a.delivery, &a.channel.last)
	if fields.bad {
		return errFrame
	}
	f.intake.frames.Add(1)
	a.headed, a.size = true, binary.BigEndian.Uint64(frame[bodySizeAt:])
	a.delivery.Body = make([]byte, 0, min(a.size, maxFirstBody))
	if a.size == 0 {
		f.complete(a)
	}
	return nil
}

// beginBody begins to read a frame of a delivery's body.
func (f *frameReader) beginBody(a *assembly, size int) error {
	if !a.headed || uint64(len(a.delivery.Body))+uint64(size) > a.size { //nolint:gosec // a frame's size is not negative.
		return errFrame
	}
	if _, err := f.r.Discard(frameHeaderBytes); err != nil {
		return err
	}
	f.intake.body, f.intake.left = a, size
	return nil
}

// readBody reads bytes of a body's frame. It blocks only for the first byte.
func (f *frameReader) readBody() error {
	a := f.intake.body
	if f.intake.left > 0 {
		body := a.delivery.Body
		if len(body) == cap(body) {
			body = slices.Grow(body, int(min(uint64(cap(body)), a.size-uint64(len(body))))) //nolint:gosec // at most cap(body).
		}
		n, err := f.r.Read(body[len(body):min(cap(body), len(body)+f.intake.left)])
		a.delivery.Body = body[:len(body)+n]
		f.intake.left -= n
		return err
	}
	if end, err := f.r.ReadByte(); err != nil {
		return err
	} else if end != frameEnd {
		return errFrame
	}
	f.intake.body = nil
	f.countTaken()
	if uint64(len(a.delivery.Body)) == a.size {
		f.complete(a)
	}
	return nil
}

// complete passes a delivery to its consumer.
func (f *frameReader) complete(a *assembly) {
	delete(f.intake.assembling, a.channel.id)
	a.queue.put(&a.delivery)
}
