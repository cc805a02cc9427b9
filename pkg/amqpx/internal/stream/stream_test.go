package stream

import (
	"io"
	"testing"
	"testing/synctest"
	"time"

	"rabbitmq-rpc/pkg/amqpx/internal/wire"
)

// openStream opens a stream with one item.
func openStream(d *side, item string, halfClose bool) *Stream {
	s := d.table.NewStream(windows())
	s.Put([]byte(item), halfClose)
	s.Start()
	return s
}

func TestShortStreamIsTwoMessages(t *testing.T) {
	t.Parallel()
	inBubble(t, func(n *network) {
		t := n.t
		server := n.side("server", sends(3, 100))
		client := n.side("client", nil)
		s := openStream(client, "request", true)
		got, err := receiveAll(s)
		wantSame(t, "items", got, 3)
		wantSame(t, "error", err, io.EOF)
		synctest.Wait()
		wantSame(t, "messages of the client", n.count("client"), 1)
		if m := n.count("server"); m > 2 {
			t.Errorf("%d messages of the server", m)
		}
		wantResult(t, s, ReasonEnd, Progress{Sent: 1, Received: 3})
		wantSame(t, "open", client.table.Counts.Open.Load()+server.table.Counts.Open.Load(), 0)
		wantSame(t, "peers", len(client.link.peers)+len(server.link.peers), 0)
	})
}

func TestLongStreams(t *testing.T) {
	t.Parallel()
	inBubble(t, func(n *network) {
		t := n.t
		n.side("server", echoes)
		client := n.side("client", nil)
		const count = 100_000
		s := client.table.NewStream(windows())
		go func() {
			item := make([]byte, 100)
			for i := range count {
				item[0], item[1], item[2] = byte(i), byte(i>>8), byte(i>>16)
				if s.Send(item) != nil {
					return
				}
			}
			s.HalfClose()
		}()
		for i := range count {
			item, err := s.Receive()
			if err != nil || len(item) != 100 || item[0] != byte(i) || item[1] != byte(i>>8) || item[2] != byte(i>>16) {
				t.Fatalf("item %d: %v, error %v", i, item, err)
			}
		}
		_, err := s.Receive()
		wantSame(t, "error", err, io.EOF)
		wantSame(t, "number", s.Result().Progress, Progress{Sent: count, Taken: count, Received: count})
		_, err = s.Receive()
		wantSame(t, "error afterwards", err, io.EOF)
	})
}

// pingPong sends an item and waits for the answer.
func pingPong(t *testing.T, s *Stream) {
	t.Helper()
	if err := s.Send([]byte{1}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Receive(); err != nil {
		t.Fatal(err)
	}
	synctest.Wait()
}

func TestMessagesOfAPingPongAndOfAnIdleStream(t *testing.T) {
	t.Parallel()
	inBubble(t, func(n *network) {
		t := n.t
		n.side("server", echoes)
		client := n.side("client", nil)
		s := client.table.NewStream(windows())
		pingPong(t, s)
		client0, server0 := n.count("client"), n.count("server")
		for range 100 {
			pingPong(t, s)
		}
		wantSame(t, "messages of the client", n.count("client")-client0, 100)
		wantSame(t, "messages of the server", n.count("server")-server0, 100)
		client0, server0 = n.count("client"), n.count("server")
		<-time.After(testKeepAlive - testKeepAlive/4)
		wantSame(t, "messages of the idle client", n.count("client")-client0, 0)
		wantSame(t, "messages of the idle server", n.count("server")-server0, 0)
		<-time.After(100 * testKeepAlive) // only pings by the client
		pings := n.count("client") - client0
		wantSame(t, "pongs", n.count("server")-server0, pings)
		if pings < 60 || pings > 101 {
			t.Errorf("%d pings", pings)
		}
		pingPong(t, s)
	})
}

func TestStalledReader(t *testing.T) {
	t.Parallel()
	inBubble(t, func(n *network) {
		t := n.t
		server := n.side("server", sends(1_000_000, 100))
		client := n.side("client", nil)
		s := openStream(client, "", true)
		synctest.Wait()
		messages := n.count("server")
		<-time.After(testKeepAlive / 2)
		wantSame(t, "messages of the stalled server", n.count("server"), messages)
		client.table.mu.Lock()
		held := 0
		for _, items := range s.in {
			held += cap(items.Fields())
		}
		wantSame(t, "items", s.inItems, (initialBytes+99)/100)
		client.table.mu.Unlock()
		if held > 2*initialBytes {
			t.Errorf("%d bytes are held", held)
		}
		for range 20 { // the application waits, as far from the server: the window grows to its limit
			n.setHold(true)
			client.table.mu.Lock()
			waiting := s.inItems
			client.table.mu.Unlock()
			for range waiting {
				if _, err := s.Receive(); err != nil {
					t.Fatal(err)
				}
			}
			time.AfterFunc(time.Millisecond, func() { n.setHold(false) })
			if _, err := s.Receive(); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
		}
		<-time.After(time.Second)
		client.table.mu.Lock()
		if s.inBytes > MaxWindowBytes+100 || s.inBytes < MaxWindowBytes/2 {
			t.Errorf("%d bytes wait", s.inBytes)
		}
		client.table.mu.Unlock()
		s.Abandon(&Result{Reason: ReasonAbandoned}, canceledEnd())
		synctest.Wait()
		wantSame(t, "open", server.table.Counts.Open.Load(), 0)
		wantSame(t, "windows", server.table.windows+client.table.windows, 0)
	})
}

func TestItemsLargerThanTheWindow(t *testing.T) {
	t.Parallel()
	inBubble(t, func(n *network) {
		t := n.t
		n.side("server", sends(3, 5<<20))
		client := n.side("client", nil)
		got, err := receiveAll(openStream(client, "", true))
		wantSame(t, "items", got, 3)
		wantSame(t, "error", err, io.EOF)
	})
}

func TestEmptyItemsAreBounded(t *testing.T) {
	t.Parallel()
	inBubble(t, func(n *network) {
		t := n.t
		n.side("server", sends(100_000, 0))
		client := n.side("client", nil)
		s := openStream(client, "", true)
		synctest.Wait()
		client.table.mu.Lock()
		wantSame(t, "items", s.inItems, initialItems)
		client.table.mu.Unlock()
		got, err := receiveAll(s)
		wantSame(t, "items", got, 100_000)
		wantSame(t, "error", err, io.EOF)
	})
}

// A stalled stream, and a busy one, hold up no other stream.
func TestTurns(t *testing.T) {
	t.Parallel()
	inBubble(t, func(n *network) {
		t := n.t
		n.side("server", func(s *Stream) {
			s.Accept(func() {})
			first, _ := s.Receive()
			if string(first) == "echo" {
				echoes(s)
				return
			}
			sends(10_000, 100)(s)
		})
		client := n.side("client", nil)
		stalled := openStream(client, "", true)
		busy := make([]*Stream, 5)
		done := make(chan int, len(busy))
		for i := range busy {
			busy[i] = openStream(client, "", true)
			go func() {
				n, _ := receiveAll(busy[i])
				done <- n
			}()
		}
		echo := openStream(client, "echo", false)
		for range 10 {
			pingPong(t, echo)
		}
		for range busy {
			wantSame(t, "items", <-done, 10_000)
		}
		wantSame(t, "stalled", stalled.Result(), nil)
	})
}

func TestServerFailsBehindItsItems(t *testing.T) {
	t.Parallel()
	inBubble(t, func(n *network) {
		t := n.t
		n.side("server", func(s *Stream) {
			s.Accept(func() {})
			s.SetHeaders([]wire.StreamHeader{{Name: "h", Value: "1"}}, false)
			for range 2000 {
				_ = s.Send(make([]byte, 100))
			}
			s.Finish(&wire.End{Failure: &wire.Failure{Code: "not_found", Ran: wire.RanYes}, Trailers: []wire.StreamHeader{{Name: "t", Value: "2"}}}, func() {})
		})
		client := n.side("client", nil)
		s := openStream(client, "", true)
		wantSame(t, "headers", len(s.Headers()), 1)
		got, err := receiveAll(s)
		wantSame(t, "items", got, 2000)
		wantSame(t, "error", err, ErrFailed)
		wantResult(t, s, ReasonEnd, Progress{Sent: 1, Received: 2000})
		wantSame(t, "code", s.Result().End.Failure.Code, "not_found")
		wantSame(t, "trailers", len(s.Result().End.Trailers), 1)
	})
}

// The server ends while the client sends: Send returns io.EOF, and the end tells how far it came.
func TestServerEndsEarly(t *testing.T) {
	t.Parallel()
	inBubble(t, func(n *network) {
		t := n.t
		n.side("server", func(s *Stream) {
			s.Accept(func() {})
			for range 10 {
				_, _ = s.Receive()
			}
			s.Finish(&wire.End{Failure: &wire.Failure{Code: "aborted"}}, func() {})
		})
		client := n.side("client", nil)
		s := client.table.NewStream(windows())
		var err error
		sent := 0
		for ; err == nil; sent++ {
			err = s.Send(make([]byte, 1000))
		}
		wantSame(t, "error", err, io.EOF)
		_, err = s.Receive()
		wantSame(t, "error", err, ErrFailed)
		wantSame(t, "taken", s.Result().Progress.Taken, 10)
		wantSame(t, "code", s.Result().End.Failure.Code, "aborted")
	})
}

func TestRefusal(t *testing.T) {
	t.Parallel()
	inBubble(t, func(n *network) {
		t := n.t
		var server *side
		server = n.side("server", func(s *Stream) {
			s.Discard()
			server.link.Refuse("client", "", s.Number(), &wire.End{Failure: &wire.Failure{Code: "unimplemented", Ran: wire.RanNo}})
		})
		client := n.side("client", nil)
		s := openStream(client, "", true)
		_, err := receiveAll(s)
		wantSame(t, "error", err, ErrFailed)
		wantResult(t, s, ReasonReset, Progress{Sent: 1})
		r := s.Result()
		wantSame(t, "accepted", r.Accepted, false)
		wantSame(t, "ran", r.End.Failure.Ran, wire.RanNo)
		synctest.Wait()
		wantSame(t, "peers", len(client.link.peers)+len(server.link.peers), 0)
	})
}

// The acceptance is told when the broker has it, and the end too.
func TestConfirms(t *testing.T) {
	t.Parallel()
	inBubble(t, func(n *network) {
		t := n.t
		accepted, ended := make(chan struct{}), make(chan struct{})
		n.side("server", func(s *Stream) {
			s.Accept(func() { close(accepted) })
			<-accepted
			s.Finish(&wire.End{}, func() { close(ended) })
		})
		client := n.side("client", nil)
		_, err := receiveAll(openStream(client, "", true))
		wantSame(t, "error", err, io.EOF)
		<-ended
	})
}
