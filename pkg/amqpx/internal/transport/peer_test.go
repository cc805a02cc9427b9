package transport

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"io"
	"net"
	"slices"
)

// peer is the broker's end of a real AMQP connection, with the minimum of functions for the
// protocol library: handshake, channels, confirms. The fields headers and start hold
// received content headers and start-ok arguments for the test.
type peer struct {
	conn    net.Conn
	offers  string        // the SASL mechanisms; "": PLAIN
	mute    []method      // methods without a response
	hangUp  []method      // methods at which peer closes the connection without an exception
	headers chan []byte   // the content header of every publish, without its first 14 bytes
	frames  []byte        // written after every consume-ok
	ended   chan struct{} // closed when the connection ends
	start   []byte        // the arguments of connection.start-ok
	tags    map[uint16]uint64
}

// method is a class id and a method id of AMQP 0-9-1.
type method struct{ class, id uint16 }

// servePeer starts p on conn; p answers until the connection ends.
func servePeer(conn net.Conn, p *peer) *peer {
	p.conn, p.tags = conn, map[uint16]uint64{}
	p.headers, p.ended = make(chan []byte, 1024), make(chan struct{})
	go func() {
		defer close(p.ended)
		defer conn.Close() //nolint:errcheck // only to free it.
		if _, err := io.ReadFull(conn, make([]byte, 8)); err != nil {
			return
		}
		offers := cmp.Or(p.offers, "PLAIN")
		p.send(0, method{10, 10}, "\x00\x09\x00\x00\x00\x00\x00\x00\x00"+string(rune(len(offers)))+offers+"\x00\x00\x00\x05en_US")
		for p.frame() {
		}
	}()
	return p
}

// send writes a method frame.
func (p *peer) send(channel uint16, m method, args string) {
	var b bytes.Buffer
	b.WriteByte(1)
	_ = binary.Write(&b, binary.BigEndian, channel)
	_ = binary.Write(&b, binary.BigEndian, uint32(len(args)+4))
	_ = binary.Write(&b, binary.BigEndian, m)
	b.WriteString(args)
	b.WriteByte(0xCE)
	_, _ = p.conn.Write(b.Bytes())
}

// frame reads and answers one frame, or reports false to end the connection.
func (p *peer) frame() bool {
	head := make([]byte, 7)
	if _, err := io.ReadFull(p.conn, head); err != nil {
		return false
	}
	body := make([]byte, binary.BigEndian.Uint32(head[3:])+1)
	if _, err := io.ReadFull(p.conn, body); err != nil {
		return false
	}
	channel, payload := binary.BigEndian.Uint16(head[1:]), body[:len(body)-1]
	switch head[0] {
	case 1:
		m := method{binary.BigEndian.Uint16(payload), binary.BigEndian.Uint16(payload[2:])}
		if m == (method{10, 11}) { // start-ok
			p.start = payload[4:]
		}
		if slices.Contains(p.hangUp, m) {
			return false
		}
		if !slices.Contains(p.mute, m) {
			p.answer(channel, m, payload[4:])
		}
	case 2:
		p.headers <- payload[14:]
		if binary.BigEndian.Uint64(payload[4:]) == 0 {
			p.confirm(channel)
		}
	case 3:
		p.confirm(channel)
	}
	return true
}

// confirm acknowledges the next publish of the channel.
func (p *peer) confirm(channel uint16) {
	p.tags[channel]++
	p.send(channel, method{60, 80}, string(binary.BigEndian.AppendUint64(nil, p.tags[channel]))+"\x00")
}

func (p *peer) answer(channel uint16, m method, args []byte) {
	switch m {
	case method{10, 11}: // start-ok
		p.send(0, method{10, 30}, "\x00\x00\x00\x02\x00\x00\x00\x00") // tune: frames of 128 KiB, no heartbeat
	case method{10, 40}: // open
		p.send(0, method{10, 41}, "\x00")
	case method{10, 50}: // close
		p.send(0, method{10, 51}, "")
	case method{20, 10}: // channel.open
		p.send(channel, method{20, 11}, "\x00\x00\x00\x00")
	case method{20, 40}: // channel.close
		p.send(channel, method{20, 41}, "")
	case method{85, 10}: // confirm.select
		p.send(channel, method{85, 11}, "")
	case method{60, 10}: // qos
		p.send(channel, method{60, 11}, "")
	case method{60, 20}: // consume
		tag := args[3+int(args[2]):]
		p.send(channel, method{60, 21}, string(tag[:1+int(tag[0])]))
		_, _ = p.conn.Write(p.frames)
	}
}
