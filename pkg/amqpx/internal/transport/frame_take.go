package transport

import (
	"encoding/binary"
	"io"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

// maxTakenMethod bounds the size of the methods that the frame reader takes: basic.deliver has
// three short strings.
const maxTakenMethod = 1024

// libraryPause is the longest time without bytes for amqp091-go, in nanoseconds, while frames
// arrive that do not pass on to it. Then it gets a heartbeat, from which it learns that the broker lives.
const libraryPause = time.Second

// assembly is a delivery whose content has not arrived in full.
type assembly struct {
	channel  uint16
	delivery amqp.Delivery
	queue    *deliveryQueue
	owner    *netChannel
	size     uint64 // of the body
	headed   bool   // the content header has arrived
}

// maxFirstBody bounds the memory for a body before its bytes arrive.
const maxFirstBody = 1 << 20

// takeMethod takes the next frame, a method, if it is a delivery to a consumer of netChannel or
// a confirm. first reports whether amqp091-go has processed all earlier frames: a confirm must not
// overtake the return of its message.
func (f *frameReader) takeMethod(channel uint16, size int, first bool) (bool, error) {
	if len(f.assembling) > 0 {
		delete(f.assembling, channel) // the rest of the content will not come
	}
	if size > maxTakenMethod || size < 4 {
		return false, nil
	}
	head, err := f.r.Peek(frameHeaderBytes + 4)
	if err != nil {
		return false, err
	}
	class, method := binary.BigEndian.Uint16(head[frameHeaderBytes:]), binary.BigEndian.Uint16(head[frameHeaderBytes+2:])
	if class == classChannel && method == channelOpen {
		f.channels.opened.Store(uint32(channel))
		return false, nil
	}
	if class != classBasic || method != basicDeliver && method != basicAck && method != basicNack {
		return false, nil
	}
	ch := f.channels.get(channel)
	if ch == nil {
		return false, nil
	}
	frame, err := f.r.Peek(frameOverhead + size)
	if err != nil {
		return false, err
	}
	if frame[len(frame)-1] != frameEnd {
		return false, errFrame
	}
	args := fieldReader{b: frame[frameHeaderBytes+4 : len(frame)-1]}
	if method == basicDeliver {
		tag := args.shortString()
		queue := ch.consumerOf(tag)
		if queue == nil {
			return false, nil
		}
		a := &assembly{channel: channel, queue: queue, owner: ch}
		a.delivery.Acknowledger = ch
		a.delivery.ConsumerTag = queue.tag
		args.delivery(&a.delivery, &ch.last)
		if args.bad {
			return false, errFrame
		}
		if f.assembling == nil {
			f.assembling = make(map[uint16]*assembly)
		}
		f.assembling[channel] = a
	} else {
		if !first {
			f.yield = true
			return true, nil
		}
		tag, bits := args.uint64(), args.octet()
		if args.bad {
			return false, errFrame
		}
		ch.confirms.settle(tag, bits&1 != 0, method == basicAck)
	}
	f.discard = len(frame)
	f.took()
	return true, nil
}

// took counts a frame that does not pass on.
func (f *frameReader) took() {
	f.taken.Add(1)
	if now := time.Now(); now.Sub(f.passedAt) > libraryPause {
		f.passedAt = now
		f.out = heartbeatFrame
	}
}

// takeHeader takes the content header of a delivery.
func (f *frameReader) takeHeader(a *assembly, frame []byte) error {
	if len(frame) < flagsAt+2+1 || a.headed {
		return errFrame
	}
	a.headed = true
	a.size = binary.BigEndian.Uint64(frame[bodySizeAt:])
	fields := fieldReader{b: frame[flagsAt : len(frame)-1]}
	fields.properties(&a.delivery, &a.owner.last)
	if fields.bad || frame[len(frame)-1] != frameEnd {
		return errFrame
	}
	if a.size == 0 {
		f.complete(a)
		return nil
	}
	a.delivery.Body = make([]byte, 0, min(a.size, maxFirstBody))
	return nil
}

// beginBody begins to read a frame of a delivery's body.
func (f *frameReader) beginBody(a *assembly, size int) error {
	if !a.headed || uint64(len(a.delivery.Body))+uint64(size) > a.size {
		return errFrame
	}
	if _, err := f.r.Discard(frameHeaderBytes); err != nil {
		return err
	}
	f.body, f.left = a, size
	return f.readBody()
}

// readBody reads bytes of a frame of a body that have arrived, at least one.
func (f *frameReader) readBody() error {
	a := f.body
	if body := a.delivery.Body; f.left > 0 {
		if len(body) == cap(body) {
			body = append(body, 0)[:len(body)]
		}
		n, err := f.r.Read(body[len(body):min(cap(body), len(body)+f.left)])
		a.delivery.Body = body[:len(body)+n]
		f.left -= n
		if err != nil || f.left > 0 {
			return err
		}
	}
	end, err := f.r.ReadByte()
	if err != nil {
		return err
	}
	if end != frameEnd {
		return errFrame
	}
	f.body = nil
	f.took()
	if uint64(len(a.delivery.Body)) == a.size {
		f.complete(a)
	}
	return nil
}

// complete hands a delivery to its consumer.
func (f *frameReader) complete(a *assembly) {
	delete(f.assembling, a.channel)
	a.queue.put(&a.delivery)
}

var _ io.Reader = (*frameReader)(nil)
