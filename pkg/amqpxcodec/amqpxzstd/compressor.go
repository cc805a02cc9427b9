// Package amqpxzstd has the compressor of Zstandard (RFC 8878), for typed methods of package amqpx:
//
//	amqpx.NewMethod[Request, Report]("report", amqpx.JSON(), amqpx.Compress(amqpxzstd.Compressor(), 4<<10))
//
// It takes less processor time than gzip for smaller results. Servers must have it before callers
// use it: every handler reads gzip, but not Zstandard.
package amqpxzstd

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/klauspost/compress/zstd"

	"rabbitmq-rpc/pkg/amqpx"
)

// Compressor returns the compressor, with the default level of
// [github.com/klauspost/compress/zstd] and the content encoding "zstd". Decompression takes at most
// [MaxWindow] beside the decompressed body; a body that needs a larger window is an error.
func Compressor() amqpx.Compressor { return compressor{} }

// MaxWindow is the largest window of a compressed body, in bytes: the window that every decoder of
// Zstandard should support (RFC 8878 section 3.1.1.1.2).
const MaxWindow = 8 << 20

type compressor struct{}

// The encoder is safe for concurrent use; decoders serve a goroutine at a time.
//
//nolint:gochecknoglobals // for any goroutine: they take some hundred KiB and more.
var (
	encoder = sync.OnceValues(func() (*zstd.Encoder, error) {
		return zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithLowerEncoderMem(true))
	})
	decoders sync.Pool
)

// Name implements [amqpx.Compressor].
func (compressor) Name() string { return "zstd" }

// Compress implements [amqpx.Compressor].
func (compressor) Compress(body []byte) ([]byte, error) {
	e, err := encoder()
	if err != nil {
		return nil, err
	}
	return e.EncodeAll(body, nil), nil
}

// Decompress implements [amqpx.Compressor].
func (compressor) Decompress(body []byte, limit int) ([]byte, error) {
	d, ok := decoders.Get().(*zstd.Decoder)
	if !ok {
		var err error
		d, err = zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(MaxWindow))
		if err != nil {
			return nil, err
		}
	}
	if err := d.Reset(bytes.NewReader(body)); err != nil {
		return nil, err
	}
	out, err := io.ReadAll(io.LimitReader(d, int64(limit)+1))
	if err = errors.Join(err, d.Reset(nil)); err != nil { // it must not keep the body
		return nil, err
	}
	decoders.Put(d)
	if len(out) > limit {
		return nil, fmt.Errorf("%w: more than %d bytes after zstd", amqpx.ErrTooLarge, limit)
	}
	return out, nil
}
