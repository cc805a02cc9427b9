package amqpxzstd_test

import (
	"bytes"
	"context"
	"errors"
	"runtime"
	"testing"

	"github.com/klauspost/compress/zstd"
	"go.uber.org/goleak"

	"rabbitmq-rpc/pkg/amqpx"
	"rabbitmq-rpc/pkg/amqpxcodec/amqpxzstd"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestCompressedRequest(t *testing.T) {
	t.Parallel()
	m := amqpx.NewMethod[[]byte, []byte]("m", amqpx.Raw(""), amqpx.Compress(amqpxzstd.Compressor(), 10))
	body := bytes.Repeat([]byte("text "), 1000)
	small, err := amqpxzstd.Compressor().Compress(body)
	if err != nil || len(small) > len(body)/10 {
		t.Fatalf("%d of %d bytes, %v", len(small), len(body), err)
	}
	got, err := m.Handler(func(_ context.Context, in []byte) ([]byte, error) { return in, nil })(t.Context(),
		&amqpx.Request{Body: small, ContentEncoding: "zstd"})
	if err != nil || !bytes.Equal(got, body) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}

// A body that becomes larger than the limit takes little more memory than the limit.
//
//nolint:paralleltest // measures memory.
func TestBombTakesLittleMemory(t *testing.T) {
	const size, limit = 128 << 20, 1 << 20
	var bomb bytes.Buffer
	e, err := zstd.NewWriter(&bomb)
	if err != nil {
		t.Fatal(err)
	}
	zeros := make([]byte, 1<<20)
	for range size / len(zeros) {
		if _, err := e.Write(zeros); err != nil {
			t.Fatal(err)
		}
	}
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	if _, err := amqpxzstd.Compressor().Decompress(bomb.Bytes(), limit); !errors.Is(err, amqpx.ErrTooLarge) {
		t.Errorf("%v", err)
	}
	runtime.ReadMemStats(&after)
	if took := after.TotalAlloc - before.TotalAlloc; took > amqpxzstd.MaxWindow*2+8*limit {
		t.Errorf("%d bytes for a limit of %d", took, limit)
	}
}

func TestWindowIsBounded(t *testing.T) {
	t.Parallel()
	var wide bytes.Buffer
	e, err := zstd.NewWriter(&wide, zstd.WithWindowSize(8*amqpxzstd.MaxWindow), zstd.WithSingleSegment(false))
	if err != nil {
		t.Fatal(err)
	}
	for range 70 {
		if _, err := e.Write(make([]byte, 1<<20)); err != nil {
			t.Fatal(err)
		}
	}
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := amqpxzstd.Compressor().Decompress(wide.Bytes(), 1<<30); !errors.Is(err, zstd.ErrWindowSizeExceeded) {
		t.Errorf("%v", err)
	}
}

func FuzzCompressor(f *testing.F) {
	f.Add([]byte("text"), 3)
	f.Add(make([]byte, 5000), 5000)
	f.Fuzz(func(t *testing.T, body []byte, limit int) {
		limit = max(limit%10000, 0)
		small, err := amqpxzstd.Compressor().Compress(body)
		if err != nil {
			t.Fatal(err)
		}
		got, err := amqpxzstd.Compressor().Decompress(small, limit)
		if fits := len(body) <= limit; fits != (err == nil) || fits && !bytes.Equal(got, body) || !fits && !errors.Is(err, amqpx.ErrTooLarge) {
			t.Errorf("%d bytes, limit %d: %d bytes, %v", len(body), limit, len(got), err)
		}
		if out, err := amqpxzstd.Compressor().Decompress(body, limit); err == nil && len(out) > limit {
			t.Errorf("%d bytes, limit %d", len(out), limit)
		}
	})
}
