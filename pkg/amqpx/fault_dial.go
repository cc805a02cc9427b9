package amqpx

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

// isCertificateError reports whether this side refused the broker's certificate.
func isCertificateError(err error) bool {
	var (
		unknown  x509.UnknownAuthorityError
		hostname x509.HostnameError
		invalid  x509.CertificateInvalidError
		verify   *tls.CertificateVerificationError
	)
	return errors.As(err, &verify) || errors.As(err, &unknown) || errors.As(err, &hostname) || errors.As(err, &invalid)
}

// clientCertificate notes what happens to the client certificate in one TLS handshake.
type clientCertificate struct {
	asked   atomic.Bool // the broker asked for one
	offered atomic.Pointer[tls.Certificate]
}

// watch notes it when the configuration is used.
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

// firstSupported picks a certificate as crypto/tls does: an empty one if none fits.
func firstSupported(own []tls.Certificate, info *tls.CertificateRequestInfo) *tls.Certificate {
	for i := range own {
		if info.SupportsCertificate(&own[i]) == nil {
			return &own[i]
		}
	}
	return new(tls.Certificate)
}

// kind returns the kind of the fault if the broker refuses the client for its certificate.
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

// handshakeFault explains why the TLS handshake failed.
func (c *clientCertificate) handshakeFault(err error) error {
	if header, ok := errors.AsType[tls.RecordHeaderError](err); ok {
		if strings.HasPrefix(string(header.RecordHeader[:]), "HTTP") {
			return &kindError{FaultPortHTTP, err}
		}
		return &kindError{FaultPortPlain, err} // a broker without TLS sends its protocol header
	}
	if kind := c.kindOfAlert(err); kind != "" {
		return &kindError{kind, err}
	}
	var network net.Error
	if isCertificateError(err) || errors.Is(err, io.EOF) || errors.As(err, &network) {
		return err
	}
	return &kindError{FaultTLSHandshake, err}
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

// kindOfAlert returns the kind of the fault that a broker's TLS alert tells, or "".
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
		if c.asked.Load() && c.offered.Load() == nil { // what TLS 1.2 says of a missing one
			return FaultClientCertificateMissing
		}
	}
	return FaultTLSHandshake
}

// alertOf returns the alert that the peer sent. crypto/tls keeps its number to itself and
// gives its text.
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

// explainDial says at which step the AMQP handshake failed, and explains what the library
// keeps to itself: what the peer sent instead of AMQP, and how the connection ended.
func (s *socket) explainDial(err error) error {
	if s == nil || s.frames == nil {
		return atStep(stepConnect, "", err)
	}
	started, peer, ended := s.frames.handshake()
	if refused, ok := errors.AsType[*amqp.Error](err); ok && refused.Server {
		started-- // of the methods, connection.close is no progress
	}
	switch {
	case isContextError(err) && started <= 0:
		return atStep(stepAMQP, "", err)
	case peer != "":
		return atStep(stepAMQP, "", &kindError{kindOfPort(peer), errors.New("it sent " + strconv.QuoteToASCII(peer))})
	case started <= 0 && !errors.Is(err, amqp.ErrSASL):
		if kind := s.certificate.kindOfAlert(ended); kind != "" {
			return atStep(stepTLS, "", &kindError{kind, ended})
		}
		if ended != nil {
			err = ended
		}
		return atStep(stepAMQP, "", &kindError{FaultClosedEarly, err})
	case err == amqp.ErrSASL, started == 1: //nolint:errorlint // the library returns this very value.
		return atStep(stepLogin, "", err)
	default:
		return atStep(stepVhost, "", err)
	}
}

func isContextError(err error) bool {
	return errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)
}

// kindOfPort tells by the first bytes that a peer sent what its port speaks.
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

// httpWait is how long a peer may take to answer the question whether it speaks HTTP.
const httpWait = 500 * time.Millisecond

// speaksHTTP reports whether a peer that did not answer AMQP's protocol header answers HTTP:
// such a peer waits for the end of a line, which AMQP never sends.
func (d netDialer) speaksHTTP(ctx context.Context, uri amqp.URI) bool {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), httpWait)
	defer cancel()
	s, err := d.openSocket(ctx, "tcp", uri)
	if err != nil {
		return false
	}
	defer s.Close() //nolint:errcheck // nothing is lost with it.
	defer context.AfterFunc(ctx, func() { _ = s.Close() })()
	if _, err := s.Write([]byte("\r\nHEAD / HTTP/1.0\r\n\r\n")); err != nil {
		return false
	}
	start := make([]byte, len("HTTP"))
	_, err = io.ReadFull(s, start)
	return err == nil && string(start) == "HTTP"
}
