package transport

import (
	"crypto/tls"
	"strings"
	"testing"
)

// TestLoginByCertificate: without a user in the URL the client certificate logs in, if the
// broker asked for one; a fault names the login that was meant.
func TestLoginByCertificate(t *testing.T) {
	t.Parallel()
	const both, refuses = "PLAIN EXTERNAL", true
	for name, c := range map[string]struct {
		user, query string
		asks        bool // for a client certificate
		offers      string
		refuses     bool
		want        string    // in the login
		kind        FaultKind // of the error; "" if the dial succeeds
	}{
		"no user":                       {"", "", true, both, false, "EXTERNAL", ""},
		"no user, not asked":            {"", "", false, both, false, "PLAIN", ""},
		"a user":                        {"app:secret@", "", true, both, false, "PLAIN", ""},
		"a user, and the mechanism":     {"app:secret@", "&auth_mechanism=external", true, both, false, "EXTERNAL", ""},
		"no user, and another":          {"", "&auth_mechanism=plain", true, both, false, "PLAIN", ""},
		"no user, refused":              {"", "", true, both, refuses, "EXTERNAL", FaultCertificateUser},
		"no user, not asked, refused":   {"", "", false, both, refuses, "PLAIN", FaultCredentials},
		"no user, the mechanism is off": {"", "", true, "PLAIN", false, "", FaultLoginMechanism},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pair, ca := selfSigned(t)
			own, _ := selfSigned(t)
			asking := &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{pair}}
			if c.asks {
				asking.ClientAuth = tls.RequestClientCert
			}
			l, err := tls.Listen("tcp", "127.0.0.1:0", asking)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = l.Close() })
			served := make(chan *peer, 1)
			go func() { // ends with the connection or the listener
				if conn, err := l.Accept(); err == nil {
					p := &peer{offers: c.offers}
					if c.refuses {
						p.hangUp = []method{{10, 11}}
					}
					served <- servePeer(conn, p)
				}
			}()
			d := realDialer()
			d.TLS = func() *tls.Config {
				config, err := tlsConfigOf(parsed(t, "amqps://h/?cacertfile="+ca))
				if err != nil {
					t.Error(err)
				}
				config.Certificates = []tls.Certificate{own}
				return config
			}
			url := "amqps://" + c.user + l.Addr().String() + "/?heartbeat=5" + c.query
			conn, err := d.Dial(t.Context(), url, "")
			if err == nil {
				conn.Close()
			}
			p := <-served
			<-p.ended
			if (err == nil) != (c.kind == "") || err != nil && Classify(parseTarget(url), err).Kind != c.kind {
				t.Errorf("error %v, want %q", err, c.kind)
			}
			if got := string(p.start); !strings.Contains(got, c.want) || c.want == "" && got != "" {
				t.Errorf("login %q, want %q", got, c.want)
			}
		})
	}
}
