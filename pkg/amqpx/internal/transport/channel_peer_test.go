package transport

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"net"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

const notFound = "\x01\x94\x09NOT_FOUND\x00\x3c\x00\x28" // the arguments of channel.close

// returnFrames returns a basic.return with its content, on channel 1.
func returnFrames(t *testing.T, id string) []byte {
	t.Helper()
	method := append([]byte{0, classBasic, 0, 50, 1, 56}, "\x08NO_ROUTE\x00\x01q"...)
	msg := amqp.Publishing{MessageId: id, Body: []byte("body")}
	return slices.Concat(frameOf(frameMethod, method), headerOf(t, msg), frameOf(frameBody, msg.Body))
}

// confirmed opens a channel with confirms.
func confirmed(t testing.TB, l *netLink) *netChannel {
	t.Helper()
	ch := openOwn(t, l)
	if err := ch.Confirm(false); err != nil {
		t.Fatal(err)
	}
	return ch
}

func publish(t *testing.T, ch *netChannel) Confirmation {
	t.Helper()
	pending, err := ch.PublishTo("", "q", true, amqp.Publishing{})
	if err != nil {
		t.Fatal(err)
	}
	return pending
}

// The publisher relies on this: a message is returned before it is confirmed, and so a confirm
// without a return means that a queue has the message.
func TestConfirmDoesNotOvertakeAReturn(t *testing.T) {
	t.Parallel()
	var w writtenFrames
	l, far := openLink(t, &peer{seen: w.seen}, amqp.Config{})
	ch := confirmed(t, l)
	returns := ch.NotifyReturn(make(chan amqp.Return, 8))
	for i := range byte(100) {
		first, second := publish(t, ch), publish(t, ch)
		stream := slices.Concat(returnFrames(t, "first"), confirmFrame(2*i+1, false), message(t, "not taken"), returnFrames(t, "second"), confirmFrame(2*i+2, false))
		for part := range slices.Chunk(stream, []int{len(stream), 1, 7, 50}[i%4]) {
			if _, err := far.Write(part); err != nil {
				t.Fatal(err)
			}
		}
		<-first.Done()
		if len(returns) == 0 {
			t.Fatal("the first message was confirmed before it was returned")
		}
		wantSame(t, "returned", (<-returns).MessageId, "first")
		<-second.Done()
		if len(returns) == 0 {
			t.Fatal("the second message was confirmed before it was returned")
		}
		wantSame(t, "returned", (<-returns).MessageId, "second")
	}
}

// recorded is a connection that keeps a copy of what is written to it.
type recorded struct {
	net.Conn

	bytes bytes.Buffer
}

func (r *recorded) Write(p []byte) (int, error) {
	r.bytes.Write(p)
	runtime.Gosched() // let other goroutines write meanwhile
	return r.Conn.Write(p)
}

// amqp091-go writes a frame larger than its buffer of 4,096 bytes in pieces. No frame of a channel
// comes between the pieces.
func TestLargeFrameOfTheLibraryIsNotTorn(t *testing.T) {
	t.Parallel()
	near, far := net.Pipe()
	conn := &recorded{Conn: near}
	l := openLinkOn(t, conn, far, &peer{seen: func([]byte) {}}, ContentLimits{}, amqp.Config{})
	ch := confirmed(t, l)
	messages := make(chan amqp.Publishing, 100)
	var publishers sync.WaitGroup
	for range 4 {
		publishers.Go(func() {
			for msg := range messages {
				if _, err := ch.PublishTo("", "q", true, msg); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for _, size := range []int{4_000, 5_000, 8_192, 100_000} {
		for range 10 {
			for range cap(messages) {
				messages <- amqp.Publishing{}
			}
			if err := l.UpdateSecret(strings.Repeat("\x00", size)); err != nil {
				t.Fatal(err)
			}
		}
	}
	close(messages)
	publishers.Wait()
	l.Close()
	for rest := conn.bytes.Bytes()[len("AMQP0091"):]; len(rest) > 0; {
		size := frameOverhead + int(binary.BigEndian.Uint32(rest[3:]))
		if size > len(rest) || rest[size-1] != frameEnd {
			t.Fatal("a frame does not end where its size says")
		}
		rest = rest[size:]
	}
}

// While only taken frames arrive, amqp091-go gets heartbeats, and a silence of one heartbeat
// interval afterwards is no sign of death, even if the interval is a second.
func TestTakenFramesAreSignsOfLife(t *testing.T) {
	t.Parallel()
	for _, interval := range []time.Duration{time.Second, 10 * time.Second} {
		synctest.Test(t, func(t *testing.T) {
			l, far := openLink(t, &peer{}, amqp.Config{Heartbeat: interval})
			ch := openOwn(t, l)
			deliveries, err := ch.Consume("q", "t", true, false, false, false, nil)
			if err != nil {
				t.Fatal(err)
			}
			heard := l.Received()
			for range 5 {
				for range 190 { // for nearly a second
					if _, err := far.Write(message(t, "x")); err != nil {
						t.Fatal(err)
					}
					if d := <-deliveries; string(d.Body) != "x" {
						t.Fatalf("body %q", d.Body)
					}
					pass(5 * time.Millisecond)
				}
				if l.Received() == heard {
					t.Fatal("the broker counts as silent")
				}
				heard = l.Received()
				pass(interval)
			}
			last := time.Now()
			if _, err := far.Write(message(t, "last")); err != nil {
				t.Fatal(err)
			}
			if reason := <-l.Closed(); reason == nil {
				t.Error("ended without a reason")
			}
			if silent := time.Since(last); silent > 3*interval/2 || silent < 3*interval/2-libraryPause {
				t.Errorf("noticed after %v", silent)
			}
			d, ok := <-deliveries
			wantSame(t, "delivered before the end", ok && string(d.Body) == "last", true)
		})
	}
}

func TestDeliveredBodyOverASlowNetwork(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const interval, chunk, chunks = 10 * time.Second, 100_000, 30
		l, far := openLink(t, &peer{}, amqp.Config{Heartbeat: interval})
		ch := openOwn(t, l)
		deliveries, err := ch.Consume("q", "t", true, false, false, false, nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := far.Write(append(deliverFrame("t"), sized(chunks*chunk, contentHeader(nil))...)); err != nil {
			t.Fatal(err)
		}
		for range chunks {
			pass(interval)
			if _, err := far.Write(frameOf(frameBody, make([]byte, chunk))); err != nil {
				t.Fatal(err)
			}
		}
		wantSame(t, "size", len((<-deliveries).Body), chunks*chunk)
	})
}

// A message whose channel ends meanwhile is written to its end, and then the close-ok: RabbitMQ
// ends the connection if a frame of another kind comes within a message.
func TestChannelThatEndsWithinAMessage(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		end  func(p *peer, ch *netChannel)
		last method
	}{
		"by the broker":   {func(p *peer, _ *netChannel) { p.send(1, method{20, 40}, notFound) }, method{20, 41}},
		"by this process": {func(_ *peer, ch *netChannel) { _ = ch.Close() }, method{20, 40}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				var w writtenFrames
				arrived, proceed := make(chan struct{}), make(chan struct{})
				var once sync.Once
				p := &peer{seen: func(frame []byte) {
					w.seen(frame)
					if frame[0] == frameBody {
						once.Do(func() {
							close(arrived)
							<-proceed
						})
					}
				}}
				l, _ := openLink(t, p, amqp.Config{ChannelMax: 2})
				ch, other := confirmed(t, l), openOwn(t, l)
				var pending Confirmation
				var err error
				published := make(chan struct{})
				go func() {
					defer close(published)
					pending, err = ch.PublishTo("", "q", true, amqp.Publishing{Body: make([]byte, 1<<20)})
				}()
				<-arrived
				go c.end(p, ch)
				settle()
				close(proceed)
				<-published
				if err != nil {
					t.Fatal(err)
				}
				<-pending.Done()
				wantSame(t, "confirmed", pending.Acked(), false)
				wantSame(t, "closed", ch.IsClosed(), true)
				if err := other.Barrier(); err != nil {
					t.Fatal(err)
				}
				w.take(t)
				wantSame(t, "a method after the message", slices.Contains(w.methods, c.last), true)
				wantSame(t, "incomplete messages", len(w.left), 0)
				if _, err := ch.PublishTo("", "q", true, amqp.Publishing{}); !errors.Is(err, amqp.ErrClosed) {
					t.Errorf("next message: %v", err)
				}
				WantIs(t, ch.PublishFanout("e", amqp.Publishing{}), amqp.ErrClosed)
				WantIs(t, ch.Ack(1, false), amqp.ErrClosed)
			})
		})
	}
}

// TestConnectionThatEndsWithinAMessage: the rest of the message is not written.
func TestConnectionThatEndsWithinAMessage(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		arrived, proceed := make(chan struct{}), make(chan struct{})
		var once sync.Once
		p := &peer{seen: func(frame []byte) {
			if frame[0] == frameBody {
				once.Do(func() {
					close(arrived)
					<-proceed
				})
			}
		}}
		l, _ := openLink(t, p, amqp.Config{})
		ch := confirmed(t, l)
		published := make(chan error)
		go func() {
			_, err := ch.PublishTo("", "q", true, amqp.Publishing{Body: make([]byte, 100<<20)})
			published <- err
		}()
		<-arrived
		p.send(0, method{10, 50}, "\x01\x40\x06forced\x00\x00\x00\x00")
		settle()
		close(proceed)
		if err := <-published; err == nil {
			t.Error("a message of a connection that has ended was published")
		}
	})
}

// A frame of an ended channel must not reach the next channel with its number.
func TestNumberOfAChannelIsUsedAgain(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var w writtenFrames
		p := &peer{seen: w.seen}
		l, far := openLink(t, p, amqp.Config{ChannelMax: 1})
		for range 20 {
			old := confirmed(t, l)
			deliveries, err := old.Consume("q", "t", false, false, false, false, nil)
			if err != nil {
				t.Fatal(err)
			}
			lost := publish(t, old)
			whole, cut := message(t, "old"), message(t, "cut off")
			if _, err := far.Write(append(whole, cut[:len(cut)-frameOverhead-1]...)); err != nil {
				t.Fatal(err)
			}
			p.send(1, method{20, 40}, notFound)
			d := <-deliveries
			if _, ok := <-deliveries; ok {
				t.Error("a delivery that was cut off")
			}
			<-lost.Done()
			wantSame(t, "confirmed", lost.Acked(), false)

			ch := confirmed(t, l)
			wantSame(t, "number", ch.id, old.id)
			fresh, err := ch.Consume("q", "t", false, false, false, false, nil)
			if err != nil {
				t.Fatal(err)
			}
			w.take(t)
			WantIs(t, d.Ack(false), amqp.ErrClosed)
			WantIs(t, old.Nack(1, false, true), amqp.ErrClosed)
			if _, err := old.PublishTo("", "q", true, amqp.Publishing{}); !errors.Is(err, amqp.ErrClosed) {
				t.Errorf("publish: %v", err)
			}
			if got := writes(t, ch, &w, func() error { return nil }); len(got) > 0 {
				t.Errorf("the old channel wrote %q", got)
			}
			pending := publish(t, ch)
			if _, err := far.Write(append(message(t, "new"), confirmFrame(1, false)...)); err != nil {
				t.Fatal(err)
			}
			wantSame(t, "body", string((<-fresh).Body), "new")
			<-pending.Done()
			wantSame(t, "confirmed", pending.Acked(), true)
			if err := ch.Close(); err != nil {
				t.Fatal(err)
			}
			settle()
			wantSame(t, "open channels", len(*l.socket.frames.channels.byID.Load()), 0)
		}
	})
}

func TestChannelWithConfirmsHasOneListenerForItsEnd(t *testing.T) {
	t.Parallel()
	l, _ := openLink(t, &peer{}, amqp.Config{})
	ch := confirmed(t, l)
	listeners := reflect.ValueOf(ch.Channel).Elem().FieldByName("closes") // of amqp091-go
	wantSame(t, "listeners", listeners.Len(), 1)
}

// The probe of a session's user reads the user's name in the reason, and may find the channel
// ended already.
func TestEndedChannelTellsTheReason(t *testing.T) {
	t.Parallel()
	p := &peer{}
	l, _ := openLink(t, p, amqp.Config{})
	for name, call := range map[string]func(*netChannel) error{
		"barrier": (*netChannel).Barrier,
		"publish": func(ch *netChannel) error { return ch.PublishFanout("", amqp.Publishing{}) },
	} {
		ch := openOwn(t, l)
		ends := ch.NotifyClose(make(chan *amqp.Error, 1))
		p.send(ch.id, method{20, 40}, notFound)
		if reason := <-ends; reason == nil {
			t.Fatalf("%s: no reason", name)
		}
		for range 2 {
			var reason *amqp.Error
			if err := call(ch); !errors.As(err, &reason) || reason.Code != amqp.NotFound {
				t.Errorf("%s: %v, want the broker's reason", name, err)
			}
		}
	}
	l.Close()
}

// Nothing is written on a channel after its close-ok, whatever the moment at which it ends.
func TestNothingIsWrittenAfterCloseOK(t *testing.T) {
	t.Parallel()
	var w writtenFrames
	closed := make(map[uint16]bool) // used only by the peer
	p := &peer{seen: func(frame []byte) {
		channel := binary.BigEndian.Uint16(frame[1:])
		if closed[channel] {
			t.Errorf("%q after close-ok", frame[:min(len(frame), 20)])
		}
		if frame[0] == frameMethod && bytes.HasPrefix(frame[frameHeaderBytes:], []byte{0, classChannel, 0, 41}) {
			closed[channel] = true
		}
		w.seen(frame)
	}}
	near, far := tcpPair(t)
	l := openLinkOn(t, near, far, p, ContentLimits{}, amqp.Config{})
	for range 200 {
		ch := openOwn(t, l)
		var users sync.WaitGroup
		for _, use := range []func() error{
			func() error { return ch.Ack(1, false) },
			func() error { return ch.PublishFanout("e", amqp.Publishing{Body: make([]byte, 300_000)}) },
		} {
			users.Go(func() {
				for use() == nil { // until the channel has ended
				}
			})
		}
		p.send(ch.id, method{20, 40}, notFound)
		users.Wait()
	}
	w.take(t)
}

// Messages and acknowledgements of several goroutines never mix.
func TestConcurrentWritersOfAChannel(t *testing.T) {
	t.Parallel()
	var w writtenFrames
	l, _ := openLink(t, &peer{seen: w.seen, frameMax: 4096}, amqp.Config{})
	ch := confirmed(t, l)
	var users sync.WaitGroup
	for i := range 3 {
		users.Go(func() {
			for n := range 100 {
				l.Cork()
				_, err := ch.PublishTo("", "q", true, amqp.Publishing{Body: make([]byte, n*i*500)})
				err = errors.Join(err, ch.Ack(uint64(n), false), ch.Nack(uint64(n), false, true), ch.PublishFanout("e", amqp.Publishing{Body: make([]byte, 10_000)}))
				l.Uncork()
				if err = errors.Join(err, ch.Barrier()); err != nil {
					t.Error(err)
				}
			}
		})
	}
	users.Wait()
	w.take(t)
	wantSame(t, "counted messages", len(ch.confirms.pending), 600)
}

// unwritable is a connection whose writes fail once it is broken.
type unwritable struct {
	net.Conn

	broken chan struct{}
}

func (u *unwritable) Write(p []byte) (int, error) {
	select {
	case <-u.broken:
		return 0, errCut
	default:
		return u.Conn.Write(p)
	}
}

// The end of a connection has the error of the write as its reason, and not that the socket was
// closed because of it.
func TestFailedWriteIsTheReasonOfTheEnd(t *testing.T) {
	t.Parallel()
	for name, body := range map[string]int{"small": 1, "large": 1 << 20} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l, _ := openLink(t, &peer{}, amqp.Config{})
			ch := confirmed(t, l)
			u := &unwritable{Conn: l.socket.Conn, broken: make(chan struct{})}
			l.socket.mu.Lock()
			l.socket.raw, l.socket.Conn = u, u
			l.socket.mu.Unlock()
			close(u.broken)
			if _, err := ch.PublishTo("", "q", true, amqp.Publishing{Body: make([]byte, body)}); !errors.Is(err, errCut) {
				t.Errorf("error %v", err)
			}
			if reason := <-l.Closed(); reason == nil || !strings.Contains(reason.Reason, errCut.Error()) {
				t.Errorf("reason %v", reason)
			}
		})
	}
}

// Every counted byte is released once, whatever ends first.
func TestBytesInHandAtEveryEnd(t *testing.T) {
	t.Parallel()
	for seed := range uint64(60) {
		r := rand.New(rand.NewPCG(seed, 2))
		limits := limited(1000, 1<<30)
		var w writtenFrames
		p := &peer{seen: w.seen}
		near, far := tcpPair(t)
		l := openLinkOn(t, near, far, p, limits, amqp.Config{})
		ch := openOwn(t, l)
		deliveries, err := ch.Consume("q", "c", false, false, false, false, nil)
		if err != nil {
			t.Fatal(err)
		}
		abandoned := make(chan struct{})
		steps := []func(){
			func() { _ = ch.Cancel("c", false) },
			func() { p.send(1, method{20, 40}, notFound) },
			func() { l.Cut() },
			func() { _, _ = far.Write(deliverAs("c", 1, false, "", "q")) },
			func() { l.Abandon(); close(abandoned) },
		}
		r.Shuffle(len(steps), func(i, j int) { steps[i], steps[j] = steps[j], steps[i] })
		var done sync.WaitGroup
		done.Go(func() {
			for range 300 {
				if _, err := far.Write(deliveryOf(t, "c", 1, 10, amqp.Publishing{Body: make([]byte, 10)})); err != nil {
					return
				}
			}
			for _, step := range steps {
				step()
			}
		})
		late := r.IntN(2) == 0
		done.Go(func() {
			if late {
				<-abandoned
			}
			for d := range deliveries {
				limits.InHand.Release(l.Claim(len(d.Body)))
			}
		})
		done.Wait()
		l.Cut()
		<-l.socket.frames.peer.ended // amqp091-go has read what had arrived
		<-ch.over
		wantSame(t, "held", limits.InHand.Held.Load(), 0)
	}
}
