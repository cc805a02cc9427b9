package transport

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

// maxCorkedBytes is the size of the buffer at which a corked socket writes all the same.
const maxCorkedBytes = 64 << 10

// maxSpareBytes bounds the buffer that an idle socket keeps. A batch and its frames fit.
const maxSpareBytes = MaxBatchBody + maxCorkedBytes

// socket is the net.Conn under amqp091-go. It adds a deadline for every write, so that a
// broker that stops reading cannot block a publisher for ever, and coalescing, so that many
// small frames leave in one system call.
//
// An idle socket writes through. While the socket is corked, or while another goroutine
// writes, writes are buffered and leave together; a buffered write reports the error of an
// earlier write. A failed write closes the connection, and Read then returns the error of that
// write. Safe for concurrent use.
type socket struct {
	net.Conn

	raw     net.Conn // the connection below Conn: Conn itself, or the TCP connection below TLS
	timeout time.Duration
	frames  *frameReader // the source of Read; nil: Conn

	received    atomic.Uint64     // reads of data
	certificate clientCertificate // for TLS

	mu      sync.Mutex
	room    sync.Cond // signaled when a write has ended
	buf     []byte    // buffered, not yet written
	spare   []byte    // the buffer of the last write, for reuse
	writing bool
	corked  bool
	err     error
	// partial is the begin of a frame of amqp091-go whose rest has not been written yet.
	partial []byte
	// held has an entry for each channel with an incomplete message: the frames that amqp091-go
	// has written for the channel meanwhile. These frames follow the message.
	held map[uint16][]byte
}

func newSocket(conn net.Conn, writeTimeout time.Duration) *socket {
	s := &socket{Conn: conn, raw: conn, timeout: writeTimeout}
	s.room.L = &s.mu
	return s
}

// Read reads data from the broker.
func (s *socket) Read(p []byte) (n int, err error) {
	if s.frames == nil {
		n, err = s.Conn.Read(p)
	} else {
		n, err = s.frames.Read(p)
	}
	if n > 0 {
		s.received.Add(1)
	}
	if err != nil {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.err != nil {
			return n, s.err
		}
	}
	return n, err
}

// Close closes the connection below TLS at once. tls.Conn's own Close would first write an
// alert, and wait up to 5 s if the broker does not read.
func (s *socket) Close() error { return s.raw.Close() }

// Write buffers p, or writes it through when the socket is idle. amqp091-go writes each of its
// frames with a Write or, if the frame does not fit the library's buffer, with several.
func (s *socket) Write(p []byte) (n int, err error) {
	n = len(p)
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.awaitRoom(); err != nil {
		return 0, err
	}
	if p = s.whole(p); len(p) == 0 || s.hold(p) {
		return n, nil
	}
	if !s.writing && len(s.buf) == 0 && (!s.corked || len(p) >= maxCorkedBytes) {
		s.flush(p)
	} else {
		s.buf = append(s.buf, p...)
	}
	if !s.writing && (!s.corked || len(s.buf) >= maxCorkedBytes) {
		s.flushGathered() // p, and the bytes that were buffered meanwhile
	}
	return n, s.err
}

// whole returns p with the bytes kept by earlier calls, if they end with the end of a frame or
// are no frames. Otherwise it keeps them and returns nothing: a frame of a channel must not come
// between the pieces of a frame of amqp091-go. The caller holds mu.
func (s *socket) whole(p []byte) []byte {
	if len(s.partial) > 0 {
		p = append(s.partial, p...)
	}
	s.partial = nil
	for rest := p; len(rest) > 0; {
		if rest[0] == 0 || rest[0] > frameTypes {
			return p // the protocol header
		}
		if len(rest) < frameHeaderBytes || frameOverhead+int(binary.BigEndian.Uint32(rest[3:])) > len(rest) {
			s.partial = append(s.partial, p...)
			return nil
		}
		rest = rest[frameOverhead+int(binary.BigEndian.Uint32(rest[3:])):]
	}
	return p
}

// append writes frames of a channel, like Write, in one piece. encode appends the frames to the
// buffer, or fails and returns the buffer unchanged. If more is true, the message is incomplete,
// and until a call without more no frame of amqp091-go for this channel is written. If the channel
// has ended, append returns amqp.ErrClosed, except for the rest of a message. The end has to be
// checked while the socket is locked: amqp091-go marks a channel as closed before it writes
// close-ok, and after close-ok another channel may get the channel's number.
func (s *socket) append(ch *netChannel, more bool, encode func(b []byte) ([]byte, error)) (err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.awaitRoom(); err != nil {
		return err
	}
	frames, begun := s.held[ch.id]
	if !begun && (ch.closing.Load() || ch.IsClosed()) {
		return amqp.ErrClosed
	}
	if s.buf, err = encode(s.buf); err != nil {
		return err
	}
	switch {
	case more && s.held == nil:
		s.held = map[uint16][]byte{ch.id: nil}
	case more:
		s.held[ch.id] = frames
	case begun:
		s.buf = append(s.buf, frames...)
		delete(s.held, ch.id)
	}
	if !s.writing && (!s.isCorkedFor(ch) || len(s.buf) >= maxCorkedBytes) {
		s.flushGathered()
	}
	return s.err
}

// isCorkedFor reports whether frames of a channel stay in the buffer: the cork of a lease applies
// to its channels only. The caller holds mu.
func (s *socket) isCorkedFor(ch *netChannel) bool {
	if ch.lease != nil {
		return ch.lease.corked
	}
	return s.corked
}

// awaitRoom waits until the buffer has room, and returns the error of a failed write. The
// caller holds mu.
func (s *socket) awaitRoom() error {
	for s.writing && len(s.buf) >= maxCorkedBytes && s.err == nil {
		s.room.Wait()
	}
	return s.err
}

// hold keeps p back if p is a frame for a channel with an incomplete message, and reports
// whether it did. The caller holds mu.
func (s *socket) hold(p []byte) bool {
	if len(s.held) == 0 || len(p) < frameOverhead || int(binary.BigEndian.Uint32(p[3:])) != len(p)-frameOverhead {
		return false
	}
	channel := binary.BigEndian.Uint16(p[1:])
	frames, ok := s.held[channel]
	if ok {
		s.held[channel] = append(frames, p...)
	}
	return ok
}

// cork makes the socket buffer writes until uncork.
func (s *socket) cork() { s.setCork(&s.corked) }

// uncork writes the buffered bytes.
func (s *socket) uncork() { s.removeCork(&s.corked) }

// setCork sets a flag that is guarded by mu: corked, or the flag of a lease.
func (s *socket) setCork(corked *bool) {
	s.mu.Lock()
	*corked = true
	s.mu.Unlock()
}

// removeCork resets a flag of setCork and writes the buffered bytes.
func (s *socket) removeCork(corked *bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	*corked = false
	if !s.writing {
		s.flushGathered()
	}
}

// flushGathered writes the buffered bytes, and the bytes buffered meanwhile. The caller holds
// mu and has checked that writing is false.
func (s *socket) flushGathered() {
	for len(s.buf) > 0 && s.err == nil {
		p := s.buf
		s.buf = s.spare[:0]
		s.flush(p)
		if s.spare = p; cap(p) > maxSpareBytes {
			s.spare = nil
		}
	}
}

// flush writes p; it releases mu during the write. The caller holds mu and has checked that
// writing is false.
func (s *socket) flush(p []byte) {
	s.writing = true
	s.mu.Unlock()
	err := s.Conn.SetWriteDeadline(time.Now().Add(s.timeout))
	if err == nil {
		_, err = s.Conn.Write(p)
	}
	if err != nil && s.frames != nil {
		s.frames.awaitReason()
	}
	s.mu.Lock()
	s.writing = false
	if err != nil {
		s.err = err   // before the end of the reader, which returns it
		_ = s.Close() // does not wait
	}
	s.room.Broadcast()
}

// clientCertificate records the use of the client certificate in one TLS handshake.
type clientCertificate struct {
	asked   atomic.Bool // the broker requested a certificate
	offered atomic.Pointer[tls.Certificate]
}

// certificateEnds returns the ends of the certificates in the TLS handshake, see Conn.
func (s *socket) certificateEnds() (broker, own time.Time) {
	secure, ok := s.Conn.(*tls.Conn)
	if !ok {
		return broker, own
	}
	for _, c := range secure.ConnectionState().PeerCertificates {
		if broker.IsZero() || c.NotAfter.Before(broker) {
			broker = c.NotAfter
		}
	}
	if offered := s.certificate.offered.Load(); offered != nil {
		if leaf, err := x509.ParseCertificate(offered.Certificate[0]); err == nil {
			own = leaf.NotAfter
		}
	}
	return broker, own
}

// watch makes config record the broker's request for a certificate and the certificate sent.
func (c *clientCertificate) watch(config *tls.Config) {
	get, own := config.GetClientCertificate, config.Certificates
	config.GetClientCertificate = func(info *tls.CertificateRequestInfo) (*tls.Certificate, error) {
		c.asked.Store(true)
		certificate := firstSupported(own, info)
		if get != nil {
			var err error
			if certificate, err = get(info); err != nil {
				return nil, err
			}
		}
		if certificate != nil && len(certificate.Certificate) > 0 {
			c.offered.Store(certificate)
		}
		return certificate, nil
	}
}

// firstSupported chooses a certificate in the same way as crypto/tls: the first that the
// broker supports, else an empty certificate.
func firstSupported(own []tls.Certificate, info *tls.CertificateRequestInfo) *tls.Certificate {
	for i := range own {
		if info.SupportsCertificate(&own[i]) == nil {
			return &own[i]
		}
	}
	return new(tls.Certificate)
}

// kind returns the kind of fault if the broker refuses the client's certificate.
func (c *clientCertificate) kind() FaultKind {
	offered := c.offered.Load()
	if offered == nil {
		return FaultClientCertificateMissing
	}
	if leaf, err := x509.ParseCertificate(offered.Certificate[0]); err == nil {
		if now := time.Now(); now.After(leaf.NotAfter) || now.Before(leaf.NotBefore) {
			return FaultClientCertificateExpired
		}
	}
	return FaultClientCertificate
}

// handshakeFault determines why the TLS handshake failed.
func (c *clientCertificate) handshakeFault(err error) error {
	if header, ok := errors.AsType[tls.RecordHeaderError](err); ok {
		if strings.HasPrefix(string(header.RecordHeader[:]), "HTTP") {
			return &KindError{Kind: FaultPortHTTP, Cause: err}
		}
		return &KindError{Kind: FaultPortPlain, Cause: err} // a broker without TLS sends its protocol header
	}
	if kind := c.kindOfAlert(err); kind != "" {
		return &KindError{Kind: kind, Cause: err}
	}
	var network net.Error
	if isCertificateError(err) || errors.Is(err, io.EOF) || errors.As(err, &network) {
		return err
	}
	return &KindError{Kind: FaultTLSHandshake, Cause: err}
}

// The alerts of TLS by which a broker refuses a client's certificate (RFC 8446 section 6.2).
const (
	alertHandshakeFailure    = 40
	alertBadCertificate      = 42
	alertUnsupported         = 43
	alertRevoked             = 44
	alertExpired             = 45
	alertCertificateUnknown  = 46
	alertUnknownCA           = 48
	alertAccessDenied        = 49
	alertCertificateRequired = 116
)

// kindOfAlert returns the kind of fault for a TLS alert of the broker, or "".
func (c *clientCertificate) kindOfAlert(err error) FaultKind {
	alert, ok := alertOf(err)
	if !ok {
		return ""
	}
	switch alert {
	case alertCertificateRequired:
		return FaultClientCertificateMissing
	case alertExpired:
		return FaultClientCertificateExpired
	case alertBadCertificate, alertUnsupported, alertRevoked, alertCertificateUnknown, alertUnknownCA, alertAccessDenied:
		return c.kind()
	case alertHandshakeFailure:
		if c.asked.Load() && c.offered.Load() == nil { // the alert of TLS 1.2 for a missing certificate
			return FaultClientCertificateMissing
		}
	}
	return FaultTLSHandshake
}

// alertOf returns the alert that the peer sent. crypto/tls does not export the alert's number,
// only its text.
func alertOf(err error) (tls.AlertError, bool) {
	op, ok := errors.AsType[*net.OpError](err)
	if !ok || op.Op != "remote error" {
		return 0, false
	}
	for alert := range tls.AlertError(255) {
		if op.Err.Error() == alert.Error() {
			return alert, true
		}
	}
	return 0, false
}

// explainDial adds the failed step of the AMQP handshake to err, and details that the library
// does not report: data of another protocol from the peer, and the reason for the end of the
// connection.
func (s *socket) explainDial(err error) error {
	if s == nil || s.frames == nil {
		return AtStep(stepConnect, "", err)
	}
	started, peer, ended := s.frames.handshake()
	if refused, ok := errors.AsType[*amqp.Error](err); ok && refused.Server {
		started-- // the method connection.close is no progress
	}
	switch {
	case isContextError(err) && started <= 0:
		return AtStep(stepAMQP, "", err)
	case peer != "":
		return AtStep(stepAMQP, "", &KindError{kindOfPort(peer), errors.New("it sent " + strconv.QuoteToASCII(peer))})
	case started <= 0 && !errors.Is(err, amqp.ErrSASL):
		if kind := s.certificate.kindOfAlert(ended); kind != "" {
			return AtStep(stepTLS, "", &KindError{Kind: kind, Cause: ended})
		}
		if ended != nil {
			err = ended
		}
		return AtStep(stepAMQP, "", &KindError{Kind: FaultClosedEarly, Cause: err})
	case err == amqp.ErrSASL, started == 1: //nolint:errorlint // the library returns this very value.
		return AtStep(stepLogin, "", err)
	default:
		return AtStep(stepVhost, "", err)
	}
}

func isContextError(err error) bool {
	return errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)
}

// kindOfPort derives the protocol of a port from the first bytes that the peer sent.
func kindOfPort(start string) FaultKind {
	const alertRecord = "\x15\x03" // the type of the record and the first byte of its version
	switch {
	case strings.HasPrefix(start, alertRecord):
		return FaultPortTLS
	case strings.HasPrefix(start, "HTTP"):
		return FaultPortHTTP
	default:
		return FaultNotAMQP
	}
}
