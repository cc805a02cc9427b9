//go:build integration

package integration

import (
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"rabbitmq-rpc/pkg/amqpx"
	"rabbitmq-rpc/test/internal/rig"
)

// oauth2 is the configuration of a broker that takes tokens of OAuth 2 which are signed with
// the broker's own key, or users with a password.
const oauth2 = `auth_backends.1 = rabbit_auth_backend_oauth2
auth_backends.2 = internal
auth_oauth2.resource_server_id = rabbitmq
auth_oauth2.default_key = own
auth_oauth2.signing_keys.own = {tls}/key.pem`

// issuer is an identity provider: a source of credentials for amqpx.WithCredentials.
type issuer struct {
	t    *testing.T
	key  *ecdsa.PrivateKey
	user string

	mu    sync.Mutex
	lives time.Duration
	given int
	away  bool
}

// token returns a token that ends after the issuer's time.
func (i *issuer) token(context.Context) (amqpx.Credentials, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.away {
		return amqpx.Credentials{}, errors.New("the identity provider is away")
	}
	i.given++
	end := time.Now().Add(i.lives).Truncate(time.Second)
	part := func(content any) string {
		text, err := json.Marshal(content)
		if err != nil {
			i.t.Error(err)
		}
		return base64.RawURLEncoding.EncodeToString(text)
	}
	signed := part(map[string]string{"alg": "ES256", "typ": "JWT", "kid": "own"}) + "." + part(map[string]any{
		"sub": i.user, "aud": []string{"rabbitmq"}, "iat": time.Now().Unix(), "exp": end.Unix(), "jti": i.given,
		"scope": []string{"rabbitmq.configure:*/*", "rabbitmq.write:*/*", "rabbitmq.read:*/*"},
	})
	digest := sha256.Sum256([]byte(signed))
	r, s, err := ecdsa.Sign(rand.Reader, i.key, digest[:])
	if err != nil {
		return amqpx.Credentials{}, err
	}
	const half = 32 // bytes of each number of the signature
	signature := append(r.FillBytes(make([]byte, half)), s.FillBytes(make([]byte, half))...)
	return amqpx.Credentials{User: "token", Password: signed + "." + base64.RawURLEncoding.EncodeToString(signature), Expires: end}, nil
}

// count returns the number of tokens.
func (i *issuer) count() int {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.given
}

// set changes the issuer.
func (i *issuer) set(change func(*issuer)) {
	i.mu.Lock()
	defer i.mu.Unlock()
	change(i)
}

// callsSucceed makes calls until the issuer has given n tokens.
func callsSucceed(t *testing.T, client *amqpx.Client, i *issuer, n int) {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	for i.count() < n {
		if got := rig.Call(t, client, "who", nil); string(got) != i.user {
			t.Fatalf("the caller is %q, want %q", got, i.user)
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d tokens, want %d", i.count(), n)
		}
	}
}

// TestTokensOfOAuth2 keeps a server and a client connected for several lifetimes of a token:
// each connection gets new tokens. When the broker ends the connections, the client returns with
// a new token; an ended token is refused.
func TestTokensOfOAuth2(t *testing.T) {
	t.Parallel()
	broker := rig.StartBrokerWithPlugins(t, oauth2, "rabbitmq_auth_backend_oauth2")
	key, ok := authorityOf(t, broker).PrivateKey.(*ecdsa.PrivateKey)
	if !ok {
		t.Fatal("the broker's key is of another kind")
	}
	const lives = 6 * time.Second
	forServer := &issuer{t: t, key: key, user: "server-of-tokens", lives: lives}
	forClient := &issuer{t: t, key: key, user: "client-of-tokens", lives: lives}
	_, address, _ := strings.Cut(broker.URL, "@")
	url := "amqp://" + address
	r := rig.On(t, broker.URL)
	server := r.ServeAt(url, rig.Methods{"who": func(_ context.Context, req *amqpx.Request) ([]byte, error) {
		return []byte(req.User), nil
	}}, amqpx.WithCredentials(forServer.token))
	client := r.ClientAt(url, amqpx.WithCredentials(forClient.token))
	rig.Connected(t, client)

	callsSucceed(t, client, forClient, 4) // the fourth token comes after the first two have ended
	if s, c := server.Stats().Reconnects, client.Stats().Reconnects; s != 0 || c != 0 || forServer.count() < 3 {
		t.Errorf("%d reconnects of the server with %d tokens, %d of the client", s, forServer.count(), c)
	}

	forClient.set(func(i *issuer) { i.away = true })
	broker.Ctl("close_all_connections", "tokens are revoked")
	says := func(kind amqpx.FaultKind) {
		t.Helper()
		rig.Eventually(t, "the fault "+string(kind), func() bool { return client.Status().Fault == kind })
	}
	says(amqpx.FaultCredentialsSource)
	forClient.set(func(i *issuer) { i.away, i.lives = false, -time.Minute })
	says(amqpx.FaultCredentials)
	forClient.set(func(i *issuer) { i.lives = lives })
	rig.Eventually(t, "the client is back with a new token", func() bool { return client.Status().Ready() })
	if got := rig.Call(t, client, "who", nil); string(got) != forClient.user {
		t.Errorf("the caller is %q", got)
	}
}
