package amqpx

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
)

// Compressor compresses the bodies of a [Method]. Its methods are called concurrently, on a server
// with what any program has sent.
type Compressor interface {
	// Name is the content encoding, such as "gzip", 1 to 255 bytes without commas.
	Name() string
	// Compress returns the compressed body.
	Compress(body []byte) ([]byte, error)
	// Decompress returns the original body. If the original body is longer than limit bytes,
	// Decompress returns an error that wraps [ErrTooLarge], and takes little more memory than limit.
	Decompress(body []byte, limit int) ([]byte, error)
}

// Compress compresses the requests and responses of the method that have more than above bytes, 0 or
// more, with the compressor, unless they would become larger. The content encoding travels
// with the body. A response is compressed only if its caller says that it accepts the encoding,
// as callers of a method with this option do. A compressed body may become as large as the
// reader's [WithMaxMessageSize]; beyond, a request is [CodeInvalidArgument], and a response is
// [CodeResourceExhausted] with [ErrTooLarge].
//
// The items of a [StreamMethod] are compressed in both directions with the compressor of the client,
// and only if both sides have the option; a handler without it reads gzip.
//
// Every handler of a [Method] reads gzip, with and without this option, so callers may begin to use
// [Gzip] at any time; any other compressor must be in the servers first.
func Compress(c Compressor, above int) MethodOption {
	return methodOption(func(m *methodConfig) {
		switch {
		case c == nil:
			m.fault = errors.Join(m.fault, errors.New("Compress: the compressor is nil"))
		case c.Name() == "" || len(c.Name()) > 255 || strings.Contains(c.Name(), ","):
			m.fault = errors.Join(m.fault, fmt.Errorf("Compress: a compressor cannot have the name %q", c.Name()))
		case above < 0:
			m.fault = errors.Join(m.fault, fmt.Errorf("Compress: above %d bytes: want 0 or more", above))
		default:
			m.compressor, m.above = c, above
		}
	})
}

// Gzip returns the compressor of compress/gzip with the default level.
func Gzip() Compressor { return gzipCompressor{} }

type gzipCompressor struct{}

//nolint:gochecknoglobals // idle writers and readers, for any goroutine: each takes some hundred KiB.
var gzipWriters, gzipReaders sync.Pool

// Name implements [Compressor].
func (gzipCompressor) Name() string { return "gzip" }

// Compress implements [Compressor].
func (gzipCompressor) Compress(body []byte) ([]byte, error) {
	var out bytes.Buffer
	w, ok := gzipWriters.Get().(*gzip.Writer)
	if ok {
		w.Reset(&out)
	} else {
		w = gzip.NewWriter(&out)
	}
	_, err := w.Write(body)
	if err = errors.Join(err, w.Close()); err != nil {
		return nil, err
	}
	w.Reset(nil) // it must not keep the buffer
	gzipWriters.Put(w)
	return out.Bytes(), nil
}

// Decompress implements [Compressor].
func (gzipCompressor) Decompress(body []byte, limit int) ([]byte, error) {
	r, ok := gzipReaders.Get().(*gzip.Reader)
	if !ok {
		r = new(gzip.Reader)
	}
	if err := r.Reset(bytes.NewReader(body)); err != nil {
		return nil, err
	}
	out, err := io.ReadAll(io.LimitReader(r, int64(limit)+1))
	switch {
	case err != nil:
		return nil, err
	case len(out) > limit:
		return nil, fmt.Errorf("%w: more than %d bytes after gzip", ErrTooLarge, limit)
	}
	gzipReaders.Put(r)
	return out, nil
}

// anyEncoding stands for a peer that accepts every content encoding of the method.
const anyEncoding = "*"

// compress returns a body as it is sent, and its content encoding.
func (m *typedMethod) compress(body []byte, accepted string) (sent []byte, encoding string, err error) {
	c := m.cfg.compressor
	if c == nil || len(body) <= m.cfg.above || !acceptsEncoding(accepted, c.Name()) {
		return body, "", nil
	}
	sent, err = c.Compress(body)
	if err != nil || len(sent) >= len(body) {
		return body, "", err
	}
	return sent, c.Name(), nil
}

// acceptsEncoding reports whether a list of content encodings contains one.
func acceptsEncoding(list, encoding string) bool {
	if list == anyEncoding {
		return true
	}
	for each := range strings.SplitSeq(list, ",") {
		if strings.EqualFold(strings.TrimSpace(each), encoding) {
			return true
		}
	}
	return false
}

// decompressorOf returns the compressor for a content encoding; nil for a body without one.
func (m *typedMethod) decompressorOf(encoding string) (Compressor, error) {
	c := m.cfg.compressor
	switch {
	case encoding == "" || strings.EqualFold(encoding, "identity"):
		return nil, nil //nolint:nilnil // there is nothing to decompress.
	case c != nil && strings.EqualFold(encoding, c.Name()):
		return c, nil
	case strings.EqualFold(encoding, "gzip"):
		return gzipCompressor{}, nil
	case c != nil && c.Name() != "gzip":
		return nil, fmt.Errorf("content encoding %q: want none, gzip or %s", encoding, c.Name())
	default:
		return nil, fmt.Errorf("content encoding %q: want none or gzip", encoding)
	}
}

// decompress returns a received body without its content encoding. limit bounds the result; 0
// stands for the default.
func (m *typedMethod) decompress(body []byte, encoding string, limit int) ([]byte, error) {
	if limit == 0 {
		limit = DefaultMaxMessageSize
	}
	c, err := m.decompressorOf(encoding)
	if err != nil || c == nil {
		return body, err
	}
	out, err := c.Decompress(body, limit)
	switch {
	case err != nil:
		return nil, fmt.Errorf("content encoding %q: %w", encoding, err)
	case len(out) > limit:
		return nil, fmt.Errorf("content encoding %q: %w: body of %d bytes, limit %d", encoding, ErrTooLarge, len(out), limit)
	}
	return out, nil
}
