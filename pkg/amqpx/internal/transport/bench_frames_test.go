package transport

import (
	"bytes"
	"io"
	"testing"
)

// repeated is a reader that returns the same stream again and again.
type repeated struct {
	stream []byte
	at     int
}

func (r *repeated) Read(p []byte) (int, error) {
	n := copy(p, r.stream[r.at:])
	r.at = (r.at + n) % len(r.stream)
	return n, nil
}

// deliverFrame returns a basic.deliver frame for the consumer.
func deliverFrame(consumer string) []byte {
	args := append([]byte{0, 60, 0, 60, byte(len(consumer))}, consumer...)
	args = append(args, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 9)
	return frameOf(1, append(args, "rpc_queue"...))
}

// BenchmarkFrames reads deliveries in a broker's form: method, content header, body.
func BenchmarkFrames(b *testing.B) {
	for name, body := range map[string]int{"small": 7, "batch": 64 << 10} {
		b.Run(name, func(b *testing.B) {
			message := bytes.Join([][]byte{
				deliverFrame("rpc-server-5f0c2c3e-97d4-4a3b-bb6e-0d1f5f0a5c11"), benchHeader(body), frameOf(3, make([]byte, body)),
			}, nil)
			f := benchReader(&repeated{stream: message})
			buf := make([]byte, 4096)
			b.ReportAllocs()
			b.SetBytes(int64(len(message)))
			for b.Loop() {
				for left := len(message); left > 0; {
					n, err := f.Read(buf[:min(left, len(buf))])
					if err != nil {
						b.Fatal(err)
					}
					left -= n
				}
			}
		})
	}
}

// benchHeader returns the content header of a request without a header table.
func benchHeader(body int) []byte {
	payload := append([]byte{0, 60, 0, 0}, 0, 0, 0, 0, 0, byte(body>>16), byte(body>>8), byte(body))
	payload = append(payload, 0x10>>1, 0xC8) // flags
	payload = append(payload, 1)
	payload = append(payload, "\x247b1b2f0e-97d4-4a3b-bb6e-0d1f5f0a5c11\x0frpc_queue.reply"...)
	return frameOf(frameContent, payload)
}

func benchReader(r io.Reader) *frameReader {
	return newFrameReader(r, ContentLimits{MaxBody: 16 << 20, InHand: &BytesInHand{Limit: 1 << 60}})
}
