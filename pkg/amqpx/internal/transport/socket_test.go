package transport

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// slowConn is a net.Conn. If gate is not nil, each write waits for a value from gate.
type slowConn struct {
	net.Conn // nil: any other call is a mistake of the test

	mu       sync.Mutex
	writes   []string
	deadline time.Time
	fail     error
	gate     chan struct{}
	closed   bool
}

func (c *slowConn) Write(p []byte) (int, error) {
	if c.gate != nil {
		<-c.gate
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.fail != nil {
		return 0, c.fail
	}
	c.writes = append(c.writes, string(p))
	return len(p), nil
}

func (c *slowConn) SetWriteDeadline(d time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.deadline = d
	return nil
}

func (c *slowConn) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	return nil
}

func (c *slowConn) want(t *testing.T, writes ...string) {
	t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	wantSame(t, "writes", strings.Join(c.writes, "|"), strings.Join(writes, "|"))
}

func mustWrite(t *testing.T, s *socket, texts ...string) {
	t.Helper()
	for _, text := range texts {
		if n, err := s.Write([]byte(text)); n != len(text) || err != nil {
			t.Errorf("Write: %d, %v", n, err)
		}
	}
}

func TestIdleSocketWritesThroughWithADeadline(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := &slowConn{}
		s := newSocket(c, time.Second)
		mustWrite(t, s, "a", "b")
		c.want(t, "a", "b")
		wantSame(t, "deadline", c.deadline, time.Now().Add(time.Second))
		pass(time.Minute)
		mustWrite(t, s, "c")
		wantSame(t, "next deadline", c.deadline, time.Now().Add(time.Second))
	})
}

func TestHeldSocketWritesOnceAtRelease(t *testing.T) {
	t.Parallel()
	c := &slowConn{}
	s := newSocket(c, time.Second)
	s.cork()
	mustWrite(t, s, "a", "b", "c")
	c.want(t)
	s.uncork()
	c.want(t, "abc")
	mustWrite(t, s, "d")
	s.uncork()
	c.want(t, "abc", "d")
}

func TestHeldSocketGathersABoundedAmount(t *testing.T) {
	t.Parallel()
	c := &slowConn{}
	s := newSocket(c, time.Second)
	s.cork()
	mustWrite(t, s, "a", strings.Repeat("b", maxCorkedBytes-2))
	c.want(t)
	mustWrite(t, s, "c")
	c.want(t, "a"+strings.Repeat("b", maxCorkedBytes-2)+"c")
	mustWrite(t, s, strings.Repeat("d", maxCorkedBytes))
	wantSame(t, "writes", len(c.writes), 2)
}

func TestSocketGathersWhileAWriteIsInProgress(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := &slowConn{gate: make(chan struct{})}
		s := newSocket(c, time.Second)
		go mustWrite(t, s, "a")
		settle()
		mustWrite(t, s, "b", "c") // buffered without waiting
		s.cork()
		s.uncork() // uncork does not wait either
		c.gate <- struct{}{}
		c.gate <- struct{}{}
		settle()
		c.want(t, "a", "bc")
	})
}

func TestSocketMakesWritersWaitWhenItsBufferIsFull(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := &slowConn{gate: make(chan struct{})}
		s := newSocket(c, time.Second)
		go mustWrite(t, s, "a")
		settle()
		mustWrite(t, s, strings.Repeat("b", maxCorkedBytes))
		done := make(chan struct{})
		go func() {
			defer close(done)
			mustWrite(t, s, "c")
		}()
		settle()
		select {
		case <-done:
			t.Fatal("the buffer has no bound")
		default:
		}
		close(c.gate)
		<-done
		settle()
		c.want(t, "a", strings.Repeat("b", maxCorkedBytes), "c")
	})
}

func TestFailedWriteEndsTheConnectionAndIsReportedFromThenOn(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := &slowConn{gate: make(chan struct{})}
		s := newSocket(c, time.Second)
		first := make(chan error, 1)
		go func() {
			_, err := s.Write([]byte("a"))
			first <- err
		}()
		settle()
		mustWrite(t, s, strings.Repeat("b", maxCorkedBytes)) // buffered: the error comes later
		waiting := make(chan error, 1)
		go func() {
			_, err := s.Write([]byte("c"))
			waiting <- err
		}()
		settle()
		c.fail = errCut
		close(c.gate)
		WantIs(t, <-first, errCut)
		WantIs(t, <-waiting, errCut)
		_, err := s.Write([]byte("d"))
		WantIs(t, err, errCut)
		s.uncork()
		c.want(t)
		wantSame(t, "closed", c.closed, true)
	})
}

func TestPeerThatStopsReadingEndsTheConnectionInTime(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		near, far := net.Pipe()
		defer far.Close() //nolint:errcheck // only to free it.
		s := newSocket(near, 3*time.Second)
		begun := time.Now()
		_, err := s.Write([]byte("nobody reads"))
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("error %v", err)
		}
		wantSame(t, "took", time.Since(begun), 3*time.Second)
		if _, err := near.Read(make([]byte, 1)); !errors.Is(err, io.ErrClosedPipe) {
			t.Errorf("the reader goes on: %v", err)
		}
	})
}

func TestSocketKeepsEveryWriteWholeAndInOrder(t *testing.T) {
	t.Parallel()
	near, far := net.Pipe()
	s := newSocket(near, time.Minute)
	const writers, each, size = 8, 300, 100
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for i := range each {
				if i%7 == 0 {
					s.cork()
				}
				record := bytes.Repeat([]byte{byte('a' + w)}, size)
				record[1], record[2] = byte(i), byte(i>>8) // record[0] is no type of a frame
				if _, err := s.Write(record); err != nil {
					t.Error(err)
				}
				if i%7 == 3 {
					s.uncork()
				}
			}
			s.uncork()
		})
	}
	go func() {
		wg.Wait()
		s.uncork()
		_ = s.Close()
	}()
	next := map[byte]int{}
	for record := make([]byte, size); ; {
		if _, err := io.ReadFull(far, record); err != nil {
			break
		}
		who := record[size-1]
		if i := int(record[1]) | int(record[2])<<8; i != next[who] || bytes.Count(record[3:], []byte{who}) != size-3 {
			t.Fatalf("writer %c: record %d, want %d", who, i, next[who])
		}
		next[who]++
	}
	for w := range writers {
		wantSame(t, "records", next[byte('a'+w)], each)
	}
}
