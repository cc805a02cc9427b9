//go:build integration

package integration

import (
	"errors"
	"maps"
	"net"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	amqp "github.com/rabbitmq/amqp091-go"

	"rabbitmq-rpc/pkg/amqpx"
	"rabbitmq-rpc/test/internal/rig"
)

// Names of the definitions' queue and of the queues and exchanges beside it.
const (
	requests    = amqpx.DefaultQueue
	batches     = requests + ".batch"
	retries     = requests + ".retry"
	deadLetters = requests + ".dead"
	control     = requests + ".control"
	exchange    = requests + ".rpc"
	ownReply    = requests + ".reply." + asClient + ".own"
	otherReply  = requests + ".reply." + asOther + ".inbox"
	neighbor    = "other_service"
)

// Results of an act.
const (
	allowed  = "allowed"
	returned = "returned"
	denied   = "403"
)

// act is something that a user does with a channel of its own.
type act struct {
	name string
	do   func(ch *amqp.Channel) error
	want string
}

// result returns the result of an act: allowed, returned, or the code of the broker's exception.
func result(t *testing.T, ch *amqp.Channel, do func(*amqp.Channel) error) string {
	t.Helper()
	ended := ch.NotifyClose(make(chan *amqp.Error, 1))
	err := do(ch)
	if err == nil {
		err = ch.Qos(1, 0, false) // flushes an exception
	}
	if errors.Is(err, amqp.ErrClosed) { // the exception came before the call that returned the error
		if reason := rig.Recv(t, ended, "the end of the channel"); reason != nil {
			err = reason
		}
	}
	var exception *amqp.Error
	switch {
	case err == nil:
		return allowed
	case errors.Is(err, errReturned):
		return returned
	case errors.As(err, &exception):
		return strconv.Itoa(exception.Code)
	default:
		t.Fatalf("an act failed: %v", err)
		return ""
	}
}

// publishing publishes a message and waits for its confirm or its return.
func publishing(exchange, key string, msg amqp.Publishing) func(*amqp.Channel) error {
	return func(ch *amqp.Channel) error { return publishMessage(ch, exchange, key, msg) }
}

func declaring(queue string, args amqp.Table) func(*amqp.Channel) error {
	return func(ch *amqp.Channel) error {
		_, err := ch.QueueDeclare(queue, true, false, false, false, args)
		return err
	}
}

func looking(queue string) func(*amqp.Channel) error {
	return func(ch *amqp.Channel) error {
		_, err := ch.QueueDeclarePassive(queue, true, false, false, false, nil)
		return err
	}
}

func getting(queue string) func(*amqp.Channel) error {
	return func(ch *amqp.Channel) error {
		_, _, err := ch.Get(queue, false)
		return err
	}
}

func consuming(queue string) func(*amqp.Channel) error {
	return func(ch *amqp.Channel) error {
		_, err := ch.Consume(queue, "", false, false, false, false, nil)
		return err
	}
}

func purging(queue string) func(*amqp.Channel) error {
	return func(ch *amqp.Channel) error {
		_, err := ch.QueuePurge(queue, false)
		return err
	}
}

func deleting(queue string) func(*amqp.Channel) error {
	return func(ch *amqp.Channel) error {
		_, err := ch.QueueDelete(queue, false, false, false)
		return err
	}
}

func binding(queue, key, exchange string) func(*amqp.Channel) error {
	return func(ch *amqp.Channel) error { return ch.QueueBind(queue, key, exchange, false, nil) }
}

func declaringExchange(name, kind string) func(*amqp.Channel) error {
	return func(ch *amqp.Channel) error { return ch.ExchangeDeclare(name, kind, true, false, false, false, nil) }
}

func deletingExchange(name string) func(*amqp.Channel) error {
	return func(ch *amqp.Channel) error { return ch.ExchangeDelete(name, false, false) }
}

// with returns a message with headers.
func with(headers amqp.Table) amqp.Publishing { return amqp.Publishing{AppId: "b", Headers: headers} }

// actsOfClient are the acts of the user client. The server's control queue has the given name.
func actsOfClient(controlQueue string) []act {
	acts := []act{
		{"call", publishTo(exchange, requests), allowed},
		{"calls in a batch", publishTo(exchange, batches), allowed},
		{"control plane", publishTo(control, ""), allowed},
		{"its own reply queue", declaring(ownReply, amqp.Table{"x-expires": int32(300000)}), allowed},
		{"consume its own reply queue", consuming(ownReply), allowed},
		{"direct reply-to", func(ch *amqp.Channel) error {
			_, err := ch.Consume("amq.rabbitmq.reply-to", "", true, false, false, false, nil)
			return err
		}, allowed},
		{"see the depth of any queue", looking(deadLetters), allowed},
		{"see the depth of another's queue", looking(otherReply), allowed},
		{"its own reply queue that dead-letters into calls", declaring(ownReply+"-dlx", amqp.Table{
			"x-dead-letter-exchange": exchange, "x-dead-letter-routing-key": requests,
		}), allowed},
		{"an exchange with the name of its reply queues", declaringExchange(ownReply+"-exchange", "direct"), allowed},
		{"a copy to a queue that is not bound", publishing(exchange, requests, with(amqp.Table{"CC": []any{deadLetters, neighbor}})), allowed},

		{"key of another service", publishTo(exchange, neighbor), returned},
		{"key of the dead letters", publishTo(exchange, deadLetters), returned},
		{"key of the retry queue", publishTo(exchange, retries), returned},
		{"key of a control queue", publishTo(exchange, controlQueue), returned},
		{"key of another's reply queue", publishTo(exchange, otherReply), returned},
		{"blind copy to another service", publishing(exchange, "none", with(amqp.Table{"BCC": []any{neighbor}})), returned},

		{"forged user", publishing(exchange, requests, amqp.Publishing{AppId: "b", UserId: asOther}), "406"},
		{"forged server", publishing(exchange, requests, amqp.Publishing{AppId: "b", UserId: asServer}), "406"},

		{"bind its reply queue to the calls", binding(ownReply, requests, exchange), denied},
		{"bind its reply queue to the control plane", binding(ownReply, "", control), denied},
		{"bind another service to the calls", binding(neighbor, neighbor, exchange), denied},
		{"bind the calls to its own exchange", binding(requests, "", ownReply+"-exchange"), denied},
		{"bind the calls to its own exchange's messages", func(ch *amqp.Channel) error {
			return ch.ExchangeBind(exchange, requests, ownReply+"-exchange", false, nil)
		}, allowed}, // harmless, by the next act
		{"publish to its own exchange", publishTo(ownReply+"-exchange", ""), denied},
		{"send its exchange's messages from the calls", func(ch *amqp.Channel) error {
			return ch.ExchangeBind(ownReply+"-exchange", requests, exchange, false, nil)
		}, denied},
		{"delete the request exchange", deletingExchange(exchange), denied},
		{"delete the control exchange", deletingExchange(control), denied},
		{"declare the request exchange", declaringExchange(exchange, "fanout"), denied},
		{"its own reply queue that dead-letters into every queue", declaring(ownReply+"-any", amqp.Table{"x-dead-letter-exchange": ""}), denied},
		{"its own reply queue that dead-letters into another exchange", declaring(ownReply+"-any", amqp.Table{"x-dead-letter-exchange": "amq.fanout"}), denied},
		{"a server-named queue", declaring("", nil), denied},
		{"a queue of another service", declaring("anything", nil), denied},
		{"a reply queue of another user", declaring(requests+".reply."+asOther+".more", nil), denied},
		{"a shard", declaring(requests+".1", nil), denied},
		{"an exchange", declaringExchange("anything", "direct"), denied},
	}
	for _, name := range []string{"amq.direct", "amq.fanout", "amq.topic", "amq.headers", "amq.match", "amq.rabbitmq.trace"} {
		acts = append(acts, act{"exchange " + name, publishTo(name, requests), denied})
	}
	for _, queue := range []string{requests, batches, retries, deadLetters, controlQueue, otherReply, ownReply, neighbor} {
		acts = append(acts, act{"default exchange to " + queue, publishTo("", queue), denied})
		if queue == ownReply {
			continue
		}
		acts = append(acts,
			act{"get from " + queue, getting(queue), denied},
			act{"consume " + queue, consuming(queue), denied},
			act{"purge " + queue, purging(queue), denied},
			act{"delete " + queue, deleting(queue), denied},
		)
	}
	return acts
}

// actsOfServer are the acts of the user server.
func actsOfServer() []act {
	const own = requests + ".control.own"
	return []act{
		{"respond", publishTo("", otherReply), allowed},
		{"dead-letter", publishTo("", deadLetters), allowed},
		{"retry", publishTo("", retries), allowed},
		{"consume requests", consuming(requests), allowed},
		{"declare a shard", declaring(requests+".7", nil), allowed},
		{"declare its control queue", declaring(own, nil), allowed},
		{"bind its control queue", binding(own, "", control), allowed},
		{"bind the requests", binding(requests, requests, exchange), allowed},

		{"read the dead letters", getting(deadLetters), denied},
		{"consume responses", consuming(otherReply), denied},
		{"delete a reply queue", deleting(otherReply), denied},
		{"declare a reply queue", declaring(requests+".reply."+asServer+".1", nil), denied},
		{"declare a queue of another service", declaring("anything", nil), denied},
		{"consume another service", consuming(neighbor), denied},
		{"delete another service", deleting(neighbor), denied},
		{"call through the request exchange", publishTo(exchange, requests), denied},
		{"publish to the control plane", publishTo(control, ""), denied},
		{"publish to another exchange", publishTo("amq.topic", requests), denied},
		{"bind another service to the requests", binding(neighbor, neighbor, exchange), denied},
		{"forged user", publishing("", otherReply, amqp.Publishing{UserId: asClient}), "406"},
	}
}

// actsOfOperator are the acts of the user operator.
func actsOfOperator() []act {
	return []act{
		{"look at the dead letters", getting(deadLetters), allowed},
		{"see the depth of any queue", looking(requests), allowed},

		{"call", publishTo(exchange, requests), denied},
		{"query the servers", publishTo(control, ""), denied},
		{"publish to the default exchange", publishTo("", requests), denied},
		{"publish to the dead letters", publishTo("", deadLetters), denied},
		{"get requests", getting(requests), denied},
		{"purge requests", purging(requests), denied},
		{"get responses", getting(otherReply), denied},
		{"delete the dead letters", deleting(deadLetters), denied},
		{"declare a queue", declaring("anything", nil), denied},
		{"declare a reply queue", declaring(requests+".reply."+asOperator+".1", nil), denied},
		{"declare a server-named queue", declaring("", nil), denied},
	}
}

// TestProductionPermissions does every act of each user with the definitions of rpc-definitions.
func TestProductionPermissions(t *testing.T) {
	t.Parallel()
	p := inProduction(t)
	// The queues exist, and nobody consumes them.
	p.management.Do(http.MethodPut, map[string]string{"configure": ".*", "write": ".*", "read": ".*"}, nil,
		"permissions", p.vhost, "admin-of-tests")
	_, address, _ := strings.Cut(p.url(asServer), "@")
	owner := rig.Beyond(t, "amqp://admin-of-tests:"+users.admin+"@"+address).Raw()
	controlQueue := control + "." + uuid.NewString()
	for _, queue := range []string{requests, batches, retries, deadLetters, controlQueue, otherReply, neighbor} {
		if err := declaring(queue, nil)(owner); err != nil {
			t.Fatal(err)
		}
	}
	for name, kind := range map[string]string{exchange: "direct", control: "fanout"} {
		if err := declaringExchange(name, kind)(owner); err != nil {
			t.Fatal(err)
		}
	}
	for _, queue := range []string{requests, batches} {
		if err := binding(queue, queue, exchange)(owner); err != nil {
			t.Fatal(err)
		}
	}
	if err := binding(controlQueue, "", control)(owner); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		user string
		acts []act
	}{{asClient, actsOfClient(controlQueue)}, {asServer, actsOfServer()}, {asOperator, actsOfOperator()}} {
		r := p.as(c.user)
		for _, a := range c.acts {
			ch := r.Raw()
			if got := result(t, ch, a.do); got != a.want {
				t.Errorf("%s: %s: %s, want %s", c.user, a.name, got, a.want)
			}
			_ = ch.Close()
		}
	}
	// Three requests of the client, and the responses of the server, are where they belong.
	for queue, want := range map[string]int{neighbor: 0, batches: 1, deadLetters: 1, retries: 1, otherReply: 1} {
		q, err := owner.QueueDeclarePassive(queue, true, false, false, false, nil)
		if err != nil {
			t.Fatal(err)
		}
		if q.Messages != want {
			t.Errorf("%d messages in %s, want %d", q.Messages, queue, want)
		}
	}
}

// TestProductionLogins: guest is off, a user reaches only its virtual host, and only the operator
// reaches the management API, without the right to change anything.
func TestProductionLogins(t *testing.T) {
	t.Parallel()
	p := inProduction(t)
	login := func(url string, sasl ...amqp.Authentication) string {
		t.Helper()
		var socket net.Conn
		conn, err := amqp.DialConfig(url, amqp.Config{SASL: sasl, Dial: func(network, address string) (opened net.Conn, err error) {
			socket, err = amqp.DefaultDial(time.Minute)(network, address)
			return socket, err
		}})
		if err != nil && socket != nil {
			_ = socket.Close() // which amqp091-go leaves open after some refusals
		}
		var exception *amqp.Error
		switch {
		case err == nil:
			_ = conn.Close()
			return allowed
		case errors.Is(err, amqp.ErrSASL):
			return "no such mechanism"
		case errors.As(err, &exception):
			return strconv.Itoa(exception.Code)
		default:
			t.Fatal(err)
			return ""
		}
	}
	_, address, _ := strings.Cut(p.url(asClient), "@")
	host, _, _ := strings.Cut(address, "/")
	credentials, _, _ := strings.Cut(p.url(asClient), "@")
	for _, c := range []struct{ name, got, want string }{
		{"client", login(p.url(asClient)), allowed},
		{"guest", login("amqp://guest:guest@" + host), denied},
		{"guest in the virtual host", login("amqp://guest:guest@" + address), denied},
		{"guest without a password", login("amqp://guest:@" + address), denied},
		{"wrong password", login("amqp://client:guest@" + address), denied},
		{"anonymous", login(p.url(asClient), anonymousLogin{}), "no such mechanism"},
		{"another virtual host", login(credentials + "@" + host), "530"},
	} {
		if c.got != c.want {
			t.Errorf("%s: %s, want %s", c.name, c.got, c.want)
		}
	}
	for _, c := range []struct {
		user, method, path string
		want               int
	}{
		{asOperator, http.MethodGet, "overview", http.StatusOK},
		{asOperator, http.MethodGet, "queues", http.StatusOK},
		{asOperator, http.MethodPut, "users/more", http.StatusUnauthorized},
		{asOperator, http.MethodPut, "vhosts/more", http.StatusUnauthorized},
		{asOperator, http.MethodGet, "definitions", http.StatusUnauthorized},
		{asClient, http.MethodGet, "overview", http.StatusUnauthorized},
		{asServer, http.MethodGet, "overview", http.StatusUnauthorized},
		{"guest", http.MethodGet, "overview", http.StatusUnauthorized},
	} {
		if got := p.manages(c.user, c.method, c.path); got != c.want {
			t.Errorf("management API: %s %s %s: %d, want %d", c.user, c.method, c.path, got, c.want)
		}
	}
}

// anonymousLogin is the mechanism of RabbitMQ 4 for logins without a user.
type anonymousLogin struct{}

func (anonymousLogin) Mechanism() string { return "ANONYMOUS" }
func (anonymousLogin) Response() string  { return "" }

// manages makes a request to the management API as a user and returns the status.
func (p *production) manages(user, method, path string) int {
	p.t.Helper()
	password := "guest"
	if user != "guest" {
		uri, err := amqp.ParseURI(p.url(user))
		if err != nil {
			p.t.Fatal(err)
		}
		password = uri.Password
	}
	req, err := http.NewRequestWithContext(rig.Patience(p.t), method, p.managementURL(user, password)+"/api/"+path, strings.NewReader("{}"))
	if err != nil {
		p.t.Fatal(err)
	}
	req.Close = true
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		p.t.Fatal(err)
	}
	_ = resp.Body.Close()
	return resp.StatusCode
}

// TestProductionLimits: the limits of connections, channels and queues hold, and the operator's
// policy applies to reply queues only.
func TestProductionLimits(t *testing.T) {
	t.Parallel()
	p := inProduction(t)
	name := "bounded-" + uuid.NewString()[:8]
	// Users belong to the whole broker, so only the new user is imported, with the limits of one process.
	p.importFrom(t.TempDir(), func(definitions map[string]any) {
		for _, list := range []string{"users", "permissions"} {
			var kept []any
			all, _ := definitions[list].([]any)
			for _, item := range all {
				if fields, ok := item.(map[string]any); ok && (fields["name"] == name || fields["user"] == name) {
					kept = append(kept, item)
				}
			}
			definitions[list] = kept
		}
	}, "-clients", name, "-processes", "1")
	t.Cleanup(func() { p.management.Do(http.MethodDelete, nil, nil, "users", name) })

	const connections, channels, queues = 4, 10, 64 + 2*3
	all := make([]*amqp.Connection, connections)
	for i := range all {
		all[i] = rig.Dial(t, p.url(name))
	}
	// The broker counts connections and channels a moment after it has opened them.
	rig.Eventually(t, "a connection beyond the limit is refused", func() bool {
		conn, err := amqp.Dial(p.url(name))
		if err == nil {
			_ = conn.Close()
		}
		return err != nil
	})
	var ch *amqp.Channel
	for i := range channels {
		opened, err := all[i%2].Channel()
		if err != nil {
			t.Fatalf("channel %d: %v", i+1, err)
		}
		ch = opened
	}
	rig.Eventually(t, "a channel beyond the limit is refused", func() bool {
		opened, err := all[2].Channel()
		if err == nil {
			_ = opened.Close()
		}
		return err != nil
	})
	made := 0
	for made <= queues {
		if _, err := ch.QueueDeclare(requests+".reply."+name+"."+strconv.Itoa(made), false, false, true, false, nil); err != nil {
			break
		}
		made++
	}
	if made != queues {
		t.Errorf("%d queues were made, want %d", made, queues)
	}
	if n := len(strings.Fields(p.broker.Ctl("-q", "list_queues", "--no-table-headers", "-p", p.vhost, "name"))); n != queues {
		t.Errorf("%d queues, want %d", n, queues)
	}
	rig.Eventually(t, "the operator's policy applies", func() bool {
		var q struct {
			Policy string `json:"operator_policy"`
		}
		p.management.Do(http.MethodGet, nil, &q, "queues", p.vhost, requests+".reply."+name+".0")
		return q.Policy == "reply-queues"
	})
}

// TestProductionBoundsReplyQueues: the operator policy of the definitions bounds a reply queue, also one that
// asks for higher bounds. The request queue and the dead letters have no operator policy, and drop nothing.
func TestProductionBoundsReplyQueues(t *testing.T) {
	t.Parallel()
	const limit = 131_072 // docs/security.md, Limits
	p := inProduction(t)
	server := p.as(asServer).Raw()
	client := p.as(asClient).Raw()
	for queue, ch := range map[string]*amqp.Channel{requests: server, deadLetters: server, ownReply: client} {
		if err := declaring(queue, amqp.Table{"x-max-length": int32(2 * limit)})(ch); err != nil {
			t.Fatal(err)
		}
	}
	type queue struct {
		Policy    string `json:"operator_policy"`
		Effective any    `json:"effective_policy_definition"` // RabbitMQ 3 shows no policy as a list
	}
	bounds := map[string]any{"expires": 300_000.0, "max-length": float64(limit), "max-length-bytes": float64(256 << 20)}
	rig.Eventually(t, "the operator policy applies to the reply queue", func() bool {
		var q queue
		p.management.Do(http.MethodGet, nil, &q, "queues", p.vhost, ownReply)
		effective, _ := q.Effective.(map[string]any)
		return q.Policy == "reply-queues" && maps.Equal(effective, bounds)
	})
	for _, name := range []string{requests, deadLetters} {
		var q queue
		p.management.Do(http.MethodGet, nil, &q, "queues", p.vhost, name)
		if effective, _ := q.Effective.(map[string]any); q.Policy != "" || len(effective) != 0 {
			t.Errorf("%s has the operator policy %q, %v", name, q.Policy, q.Effective)
		}
	}
}
