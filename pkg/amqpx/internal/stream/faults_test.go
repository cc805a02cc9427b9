package stream

import (
	"errors"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"rabbitmq-rpc/pkg/amqpx/internal/wire"
)

// inject delivers a message with these frames to a side, from a queue and a user.
func (d *side) inject(from, user string, frames ...wire.Frame) {
	var body []byte
	for i := range frames {
		body = frames[i].AppendTo(body)
	}
	d.link.Receive(from, user, body)
}

// wantEnded waits for the end of a stream.
func wantEnded(t *testing.T, s *Stream, reason Reason) {
	t.Helper()
	select {
	case <-s.Done():
		wantSame(t, "reason", s.Result().Reason, reason)
	case <-time.After(time.Hour):
		t.Error("the stream has not ended")
	}
}

// opened starts a server that waits, and a client with an open stream, and returns the streams of
// both sides.
func opened(t *testing.T, n *network) (client, server *side, s, x *Stream) {
	t.Helper()
	accepted := make(chan *Stream, 1)
	server = n.side("server", func(s *Stream) {
		s.Accept(func() {})
		accepted <- s
	})
	client = n.side("client", nil)
	s = openStream(client, "first", false)
	x = <-accepted
	synctest.Wait()
	return client, server, s, x
}

func items(text ...string) (it wire.Items) {
	for _, item := range text {
		it.Append([]byte(item))
	}
	return it
}

// A peer that breaks a rule loses its streams, and both sides learn a reason.
func TestViolations(t *testing.T) {
	t.Parallel()
	many := make([]string, initialItems+1)
	for name, c := range map[string]struct {
		frame      wire.Frame
		reason     Reason
		code       string // that the server gets
		bytes      []byte // instead of frame
		stillAlive bool
	}{
		"a gap":                   {frame: wire.Frame{Stream: 1, Seq: 1, Items: items("a")}, reason: ReasonGap, code: "data_loss"},
		"a duplicate":             {frame: wire.Frame{Stream: 1, Seq: 0}, stillAlive: true},
		"more than the credit":    {frame: wire.Frame{Stream: 1, Items: items(many...)}, reason: ReasonCredit, code: "resource_exhausted"},
		"fewer than the end says": {frame: wire.Frame{Stream: 1, End: &wire.End{Items: 1}}, reason: ReasonGap, code: "data_loss"},
		"a message of noise":      {bytes: []byte("noise"), reason: ReasonMalformed, code: "unavailable"},
		"an unknown stream":       {frame: wire.Frame{Stream: 7, Items: items("a")}, stillAlive: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			inBubble(t, func(n *network) {
				t := n.t
				client, _, s, x := opened(t, n)
				if c.bytes != nil {
					client.link.Receive("server", "", c.bytes)
				} else {
					client.inject("server", "", c.frame)
				}
				synctest.Wait()
				if c.stillAlive {
					wantSame(t, "result", s.Result(), nil)
					return
				}
				wantEnded(t, s, c.reason)
				wantEnded(t, x, ReasonReset)
				wantSame(t, "code", x.Result().End.Failure.Code, c.code)
				_, err := x.Receive()
				wantSame(t, "error of the server", err, ErrFailed)
				wantSame(t, "Send of the server", x.Send(nil), io.EOF)
			})
		})
	}
}

// A client that sends beyond its credit is reset, whatever it sends, and holds bounded memory.
func TestClientWithoutRegardForCredit(t *testing.T) {
	t.Parallel()
	inBubble(t, func(n *network) {
		t := n.t
		_, server, s, x := opened(t, n)
		item := make([]byte, 1000)
		seq := uint64(1)
		for range 100_000 {
			var it wire.Items
			it.Append(item)
			server.inject("client", "", wire.Frame{Stream: s.Number(), Seq: seq, Items: it})
			seq++
		}
		server.table.mu.Lock()
		wantSame(t, "bytes that wait", x.inBytes, 0)
		server.table.mu.Unlock()
		wantEnded(t, x, ReasonCredit)
		wantEnded(t, s, ReasonReset)
		wantSame(t, "code", s.Result().End.Failure.Code, "resource_exhausted")
		if late := server.table.Counts.Late.Load(); late < 99_000 {
			t.Errorf("%d late frames", late)
		}
	})
}

// A server that never completes its headers is reset before they fill the client.
func TestServerWithEndlessHeaders(t *testing.T) {
	t.Parallel()
	inBubble(t, func(n *network) {
		t := n.t
		client, _, s, x := opened(t, n)
		const sent = 10_000
		for range sent {
			client.inject("server", "", wire.Frame{Stream: s.Number(), Headers: []wire.StreamHeader{{Name: "n", Value: "v"}, {Name: "m", Value: string(make([]byte, 1000))}}})
		}
		wantEnded(t, s, ReasonMalformed)
		synctest.Wait()
		wantEnded(t, x, ReasonReset)
		wantSame(t, "code", x.Result().End.Failure.Code, "resource_exhausted")
		client.table.mu.Lock()
		defer client.table.mu.Unlock()
		if s.peerHeaderBytes > maxHeaders+2000 {
			t.Errorf("%d bytes of headers", s.peerHeaderBytes)
		}
	})
}

// Small items of large messages do not keep the messages.
func TestMemoryOfSmallItems(t *testing.T) {
	t.Parallel()
	inBubble(t, func(n *network) {
		t := n.t
		client, _, s, _ := opened(t, n)
		noise := make([]byte, 60<<10)
		for seq := range uint64(initialItems) {
			var other wire.Items
			other.Append(noise)
			client.inject("server", "", wire.Frame{Stream: s.Number(), Seq: seq, Items: items("x")}, wire.Frame{Stream: 99, Items: other})
		}
		client.table.mu.Lock()
		defer client.table.mu.Unlock()
		wantSame(t, "items", s.inItems, initialItems)
		held := 0
		for _, it := range s.in {
			held += cap(it.Fields())
		}
		if held > initialBytes {
			t.Errorf("%d bytes are held", held)
		}
	})
}

// Only the server that was first to accept, and only the client's own user, speak for a stream.
func TestFramesOfOthers(t *testing.T) {
	t.Parallel()
	inBubble(t, func(n *network) {
		t := n.t
		client, server, s, x := opened(t, n)
		client.inject("stranger", "", wire.Frame{Stream: s.Number(), Items: items("forged")})
		client.inject("stranger", "", wire.Frame{Stream: s.Number(), End: &wire.End{}})
		client.inject("stranger", "", wire.Frame{Stream: s.Number(), Reset: canceledEnd()})
		server.inject("client", "mallory", wire.Frame{Stream: s.Number(), Seq: 1, Items: items("forged")})
		server.inject("client", "mallory", wire.Frame{Stream: s.Number(), Reset: canceledEnd()})
		server.inject("other client", "", wire.Frame{Stream: s.Number(), Reset: canceledEnd()})
		synctest.Wait()
		wantSame(t, "client", s.Result(), nil)
		wantSame(t, "server", x.Result(), nil)
		// A second acceptance is answered with a reset, which names the stream.
		var got []wire.Frame
		n.queues["second"] = func(_ string, body []byte) {
			_ = wire.DecodeFrames(body, func(f *wire.Frame) bool {
				got = append(got, *f)
				return true
			})
		}
		client.inject("second", "", wire.Frame{Stream: s.Number(), Accept: true, Items: items("x")})
		client.inject("second", "", wire.Frame{Stream: 77, Accept: true})
		synctest.Wait()
		wantSame(t, "answers", len(got), 2)
		for _, f := range got {
			wantSame(t, "code", f.Reset.Failure.Code, "canceled")
		}
		wantSame(t, "first", s.Result(), nil)
		item, _ := x.Receive()
		wantSame(t, "item", string(item), "first")
	})
}

// Forged acceptances do not make the table of peers grow without bound.
func TestPeersAreBounded(t *testing.T) {
	t.Parallel()
	inBubble(t, func(n *network) {
		t := n.t
		client := n.side("client", nil)
		n.setHold(true)
		for i := range 5000 {
			client.inject("q"+string(rune('a'+i%26))+time.Duration(i).String(), "", wire.Frame{Stream: 1, Accept: true})
		}
		client.table.mu.Lock()
		peers := len(client.link.peers)
		client.table.mu.Unlock()
		wantSame(t, "peers", peers, maxPeers)
		n.setHold(false)
		synctest.Wait()
		wantSame(t, "peers", len(client.link.peers), 0)
	})
}

func TestNoQueueForTheOpening(t *testing.T) {
	t.Parallel()
	inBubble(t, func(n *network) {
		t := n.t
		client := n.side("client", nil)
		s := openStream(client, "x", true)
		wantEnded(t, s, ReasonUnroutable)
		// A patient stream waits, and keeps its items.
		o := windows()
		o.Patient = true
		patient := client.table.NewStream(o)
		_ = patient.Send([]byte("one"))
		patient.HalfClose()
		<-time.After(time.Minute)
		wantSame(t, "result", patient.Result(), nil)
		n.side("server", echoes)
		got, err := receiveAll(patient)
		wantSame(t, "items", got, 1)
		wantSame(t, "error", err, io.EOF)
		if m := n.count("client"); m > 80 {
			t.Errorf("%d messages", m)
		}
	})
}

func TestOpeningThatNoServerTakes(t *testing.T) {
	t.Parallel()
	inBubble(t, func(n *network) {
		t := n.t
		n.side("server", func(*Stream) {}) // does not accept
		client := n.side("client", nil)
		s := openStream(client, "x", true)
		synctest.Wait()
		client.link.FailOpenings(time.Now().Add(-time.Second), ReasonUnserved, func(*Stream) bool { return false })
		wantSame(t, "result", s.Result(), nil)
		client.link.FailOpenings(time.Now().Add(time.Second), ReasonUnserved, func(*Stream) bool { return true })
		wantSame(t, "result", s.Result(), nil)
		client.link.FailOpenings(time.Now().Add(time.Second), ReasonUnserved, func(*Stream) bool { return false })
		wantEnded(t, s, ReasonUnserved)
		wantSame(t, "openings", client.link.Openings(), 0)
	})
}

// The client abandons a stream: before the opening is written, in the queue, and when it is open.
func TestAbandon(t *testing.T) {
	t.Parallel()
	inBubble(t, func(n *network) {
		t := n.t
		accept, ended := make(chan struct{}), make(chan *Stream, 3)
		n.side("server", func(s *Stream) {
			<-accept
			s.Accept(func() {})
			<-s.Done()
			ended <- s
		})
		client := n.side("client", nil)
		cause := errors.New("enough")
		abandon := func(s *Stream, written bool) {
			t.Helper()
			s.Abandon(&Result{Reason: ReasonAbandoned, Cause: cause}, canceledEnd())
			wantEnded(t, s, ReasonAbandoned)
			wantSame(t, "written", s.Result().Written, written)
			_, err := s.Receive()
			wantSame(t, "error", err, ErrFailed)
			wantSame(t, "Send", s.Send(nil), io.EOF)
		}
		abandon(client.table.NewStream(windows()), false)
		n.setHold(true)
		held := openStream(client, "x", true)
		synctest.Wait()
		abandon(held, false)
		n.setHold(false)
		synctest.Wait()
		wantSame(t, "messages", n.count("client"), 0)
		queued := openStream(client, "x", true)
		synctest.Wait()
		abandon(queued, true)
		close(accept) // the server takes it later, and hears that it is canceled
		x := <-ended
		wantSame(t, "reason", x.Result().Reason, ReasonReset)
		wantSame(t, "code", x.Result().End.Failure.Code, "canceled")
		open := openStream(client, "x", false)
		synctest.Wait()
		abandon(open, true)
		x = <-ended
		wantSame(t, "reason", x.Result().Reason, ReasonReset)
		synctest.Wait()
		wantSame(t, "peers", len(client.link.peers), 0)
	})
}

// The server's link is lost: the client learns it by the return of a ping, or of an item.
func TestServerIsGone(t *testing.T) {
	t.Parallel()
	inBubble(t, func(n *network) {
		t := n.t
		_, server, s, x := opened(t, n)
		_ = x.Send([]byte("last"))
		synctest.Wait()
		begun := time.Now()
		server.lose()
		wantEnded(t, x, ReasonLinkLost)
		wantEnded(t, s, ReasonPeerGone)
		if took := time.Since(begun); took > testKeepAlive+testKeepAlive/2 {
			t.Errorf("the client learned it after %v", took)
		}
		item, err := s.Receive() // what came is not lost
		wantSame(t, "item", string(item), "last")
		wantSame(t, "error", err, nil)
		_, err = s.Receive()
		wantSame(t, "error", err, ErrFailed)
		wantSame(t, "progress", s.Result().Progress, Progress{Sent: 1, Received: 1})
	})
	t.Run("the client sends", func(t *testing.T) {
		t.Parallel()
		inBubble(t, func(n *network) {
			t := n.t
			_, server, s, _ := opened(t, n)
			server.lose()
			begun := time.Now()
			_ = s.Send([]byte("x"))
			wantEnded(t, s, ReasonPeerGone)
			wantSame(t, "time", time.Since(begun), 0)
		})
	})
}

// The client's link is lost: the server learns it by its next item, or by its own ping.
func TestClientIsGone(t *testing.T) {
	t.Parallel()
	for _, sends := range []bool{true, false} {
		t.Run(map[bool]string{true: "the server sends", false: "the server waits"}[sends], func(t *testing.T) {
			t.Parallel()
			inBubble(t, func(n *network) {
				t := n.t
				client, _, s, x := opened(t, n)
				client.lose()
				wantEnded(t, s, ReasonLinkLost)
				begun := time.Now()
				limit := 3 * testKeepAlive
				if sends {
					limit = 0
					_ = x.Send([]byte("x"))
				}
				wantEnded(t, x, ReasonPeerGone)
				if took := time.Since(begun); took > limit {
					t.Errorf("the server learned it after %v", took)
				}
			})
		})
	}
}

// The network swallows everything: a confirmed ping without an answer proves it.
func TestPeerIsSilent(t *testing.T) {
	t.Parallel()
	inBubble(t, func(n *network) {
		t := n.t
		_, _, s, x := opened(t, n)
		n.setMute()
		begun := time.Now()
		wantEnded(t, s, ReasonSilent)
		took := time.Since(begun)
		if took < 4*testKeepAlive || took > 6*testKeepAlive {
			t.Errorf("the client learned it after %v", took)
		}
		wantEnded(t, x, ReasonSilent)
	})
}

// A broker that blocks publishing is no sign of death, even if the client's ping is confirmed while the
// server's answer is blocked: RabbitMQ takes one more message from a connection that has published
// nothing since the alarm.
func TestBlockedBroker(t *testing.T) {
	t.Parallel()
	for name, spare := range map[string]string{"at once": "", "after one message of the client": "client"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			inBubble(t, func(n *network) {
				t := n.t
				_, _, s, x := opened(t, n)
				n.mu.Lock()
				n.spare = spare
				n.mu.Unlock()
				n.setHold(true)
				<-time.After(100 * testKeepAlive)
				n.mu.Lock()
				wantSame(t, "the side whose message was not written", n.spare, "")
				n.mu.Unlock()
				wantSame(t, "client", s.Result(), nil)
				wantSame(t, "server", x.Result(), nil)
				n.setHold(false)
				_ = x.Send([]byte("still here"))
				item, err := s.Receive()
				wantSame(t, "item", string(item), "still here")
				wantSame(t, "error", err, nil)
			})
		})
	}
}

// Openings that were not written go with the next link; written ones end.
func TestLinkIsReplaced(t *testing.T) {
	t.Parallel()
	inBubble(t, func(n *network) {
		t := n.t
		n.side("server", echoes)
		client := n.side("client", nil)
		open := openStream(client, "x", false)
		synctest.Wait()
		n.setHold(true)
		waits := openStream(client, "y", true)
		client.lose()
		later := openStream(client, "z", true) // without a link
		synctest.Wait()
		wantEnded(t, open, ReasonLinkLost)
		wantSame(t, "waits", waits.Result(), nil)
		n.setHold(false)
		client.name = "client 2"
		client.connect()
		for _, s := range []*Stream{waits, later} {
			got, err := receiveAll(s)
			wantSame(t, "items", got, 1)
			wantSame(t, "error", err, io.EOF)
		}
	})
}

// The broker refuses a message: the streams of this peer end, and the confirm of the acceptance is
// not waited for.
func TestUnpublishedMessage(t *testing.T) {
	t.Parallel()
	inBubble(t, func(n *network) {
		t := n.t
		client := n.side("client", nil)
		told := make(chan struct{})
		table := NewTable(Config{Server: true, KeepAlive: testKeepAlive, Memory: 1 << 20})
		link := table.NewLink("side", func(m *Message) {
			if m.Begin() {
				m.Failed(errors.New("refused"))
			}
		})
		n.links = append(n.links, link)
		x := link.Open("client", "", &wire.Frame{Stream: 1, Open: true}, 10, windows())
		x.Accept(func() { close(told) })
		<-told
		wantEnded(t, x, ReasonUnpublished)
		wantSame(t, "streams", link.Streams("client"), 0)
		s := client.table.NewStream(windows())
		s.Start()
		synctest.Wait()
	})
}

func TestCloseOfTheTable(t *testing.T) {
	t.Parallel()
	inBubble(t, func(n *network) {
		t := n.t
		client, _, s, x := opened(t, n)
		client.table.Close()
		client.link.WaitIdle(nil)
		wantEnded(t, s, ReasonClosed)
		wantEnded(t, x, ReasonReset)
		wantSame(t, "code", x.Result().End.Failure.Code, "canceled")
		wantEnded(t, openStream(client, "x", true), ReasonClosed)
	})
}
