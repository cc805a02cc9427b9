package amqpx

import (
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
	"go.uber.org/zap"

	"rabbitmq-rpc/pkg/amqpx/internal/brokertest"
	"rabbitmq-rpc/pkg/amqpx/internal/wire"
)

const ownReplies = "{queue}.reply.{user}."

func TestReplyPrefixes(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		templates     []string
		replyTo, user string
		want          bool
	}{
		{nil, "anything", "", true},
		{[]string{ownReplies}, "", "", true},
		{[]string{ownReplies}, "q.reply.a.1", "a", true},
		{[]string{ownReplies}, "q.reply.a.1", "b", false},
		{[]string{ownReplies}, "q.reply.a.1", "", false},
		{[]string{ownReplies}, "q.reply..1", "", false},
		{[]string{ownReplies}, "q.reply.ab.1", "a", false},
		{[]string{ownReplies}, "q.reply.a.b.1", "a.b", false},
		{[]string{ownReplies}, "q.reply.a%2Eb.1", "a.b", true},
		{[]string{ownReplies}, "q.dead", "dead", false},
		{[]string{ownReplies}, "amq.rabbitmq.reply-to.x.y", "a", false},
		{[]string{ownReplies, "amq.rabbitmq.reply-to."}, "amq.rabbitmq.reply-to.x.y", "a", true},
		{[]string{"answers."}, "answers.1", "", true},
		{[]string{"answers."}, "answer", "", false},
	} {
		s, err := NewServer(testURL, WithQueue(Queue{Name: "q"}), WithReplyPrefix(c.templates...))
		if err != nil {
			t.Fatal(err)
		}
		if got := s.mayRespond(c.replyTo, c.user); got != c.want {
			t.Errorf("%q: reply_to %q of user %q: %v, want %v", c.templates, c.replyTo, c.user, got, c.want)
		}
	}
}

func TestBadReplyPrefixes(t *testing.T) {
	t.Parallel()
	for name, opts := range map[string][]ServerOption{
		"empty":               {WithReplyPrefix("")},
		"unknown placeholder": {WithReplyPrefix("{queue}.{name}.")},
		"two users":           {WithReplyPrefix("{user}.{user}.")},
		"nothing after user":  {WithReplyPrefix("{queue}.reply.{user}")},
		"a letter after user": {WithReplyPrefix("{user}x")},
		"no users":            {WithReplyPrefix(ownReplies), WithUserID(false)},
		"trusted without ids": {WithTrustedUsers("old"), WithUserID(false)},
		"trusted nobody":      {WithTrustedUsers("")},
	} {
		if _, err := NewServer(testURL, opts...); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

// A request with the reply_to of another is acknowledged, and neither run nor answered.
func TestRequestWithTheReplyQueueOfAnother(t *testing.T) {
	t.Parallel()
	own, other := DefaultQueue+".reply.a.1", DefaultQueue+".reply.b.1"
	returned := func(p *amqp.Publishing) {
		p.UserId, p.Headers = "", amqp.Table{wire.HeaderDeadReason: "delivered 5 times", wire.HeaderUser: "a"}
	}
	for name, c := range map[string]struct {
		changes   []change
		runs      int64
		responses int
		refused   uint64
	}{
		"own":                       {[]change{ofUser("a"), from(own)}, 1, 1, 0},
		"another's":                 {[]change{ofUser("a"), from(other)}, 0, 0, 1},
		"no user":                   {[]change{from(own)}, 0, 0, 1},
		"one-way":                   {[]change{from("")}, 1, 0, 0},
		"dead letter of any user":   {[]change{from(own), returned}, 1, 0, 0},
		"another's, and malformed":  {[]change{ofUser("a"), from(other), func(p *amqp.Publishing) { p.AppId = "" }}, 0, 0, 1},
		"copy for the caller":       {[]change{ofUser("a"), from(own), copied(int64(1))}, 1, 1, 0},
		"forged copy for another's": {[]change{from(other), copied(int64(1)), ofUser("a")}, 0, 0, 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				b := brokertest.New()
				var runs atomic.Int64
				log, logs := observed(zap.WarnLevel)
				b.With(func(b *brokertest.Broker) { _, _ = b.Declare(own, true, nil), b.Declare(other, true, nil) })
				s := startServer(t, b, handlers{"m": counted(&runs, echo)}, WithReplyPrefix(ownReplies), WithLogger(log))
				ready(t, s.WaitReady)
				msg := sent("1", "")
				for _, change := range c.changes {
					change(&msg)
				}
				putRequest(b, msg)
				pass(time.Second)
				wantSame(t, "runs", runs.Load(), c.runs)
				wantSame(t, "responses", b.Ready(own), c.responses)
				wantSame(t, "responses to the other", b.Ready(other), 0)
				wantSame(t, "refused", s.Stats().ReplyRefused, c.refused)
				wantSame(t, "logged", logs.FilterMessageSnippet("reply_to").Len(), int(c.refused))
				wantSame(t, "left", b.Ready(DefaultQueue)+b.Unacked(DefaultQueue), 0)
			})
		})
	}
}

// A batch has one reply_to for all its calls.
func TestBatchWithTheReplyQueueOfAnother(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var runs atomic.Int64
		b := brokertest.New()
		s := startServer(t, b, handlers{"m": counted(&runs, echo)}, WithBatch(BatchAuto), WithReplyPrefix(ownReplies))
		ready(t, s.WaitReady)
		b.With(func(b *brokertest.Broker) { _ = b.Declare("victim", true, nil) })
		var body []byte
		for _, id := range []string{"1", "2"} {
			req := wire.Request{ID: id, Method: "m", Budget: time.Minute}
			body = req.AppendTo(body, time.Minute)
		}
		b.PutIn(batchQueueName, amqp.Publishing{ContentType: wire.ContentTypeRequests, UserId: "a", ReplyTo: "victim", Body: body})
		pass(time.Second)
		wantSame(t, "runs", runs.Load(), 0)
		wantSame(t, "refused", s.Stats().ReplyRefused, 2)
		wantSame(t, "responses", b.Ready("victim"), 0)
		wantSame(t, "left", b.Ready(batchQueueName)+b.Unacked(batchQueueName), 0)
	})
}

// Clients of this package work with servers that respond only to the caller's reply queues, in
// queries too.
func TestClientsUseTheirOwnReplyQueues(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := brokertest.New()
		s := startServer(t, b, handlers{"m": echo}, WithReplyPrefix(ownReplies), WithControl(true))
		client := startClient(t, b, WithControl(true))
		direct := startClient(t, b, WithReplyMode(ReplyDirect))
		ready(t, s.WaitReady)
		ready(t, client.WaitReady)
		ready(t, direct.WaitReady)
		wantResponse(t, <-goCall(client, within(t, time.Minute), "m", []byte("1")), "1")
		if _, err := client.Ping(within(t, time.Minute)); err != nil {
			t.Errorf("ping: %v", err)
		}
		if all, err := client.Servers(within(t, time.Minute)); err != nil || len(all) != 1 {
			t.Errorf("servers %v, %v", all, err)
		}
		if _, err := s.Ping(within(t, time.Minute)); err != nil {
			t.Errorf("ping of the server: %v", err)
		}
		refused := <-goCall(direct, within(t, time.Second), "m", []byte("1"))
		wantSame(t, "code", CodeOf(refused.err), CodeDeadlineExceeded)
		wantSame(t, "refused", s.Stats().ReplyRefused, 1)
	})
}

// A count of lost deliveries counts only in a copy by a server.
func TestForgedCountOfDeliveries(t *testing.T) {
	t.Parallel()
	lostOften := int64(DefaultDeliveryLimit - 1)
	claim := func(p *amqp.Publishing) {
		p.Headers = amqp.Table{wire.HeaderDeliveries: lostOften, wire.HeaderUser: "admin"}
	}
	for name, c := range map[string]struct {
		changes []change
		user    string // who called, as the handler sees
		dead    int
	}{
		"a copy":                  {[]change{ofUser("a"), copied(lostOften)}, "", 1},
		"a copy of an old server": {[]change{claim, ofUser("old")}, "", 1},
		"a caller's":              {[]change{claim, ofUser("a")}, "a", 0},
		"nobody's":                {[]change{claim}, "", 0},
		"a copy of a dead-lettered request": {[]change{copied(lostOften), func(p *amqp.Publishing) {
			p.Headers[wire.HeaderDeath] = []any{}
		}}, "", 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				b, _ := serve(t, handlers{"m": whoCalls}, WithTrustedUsers("old"))
				msg := sent("1", "")
				for _, change := range c.changes {
					change(&msg)
				}
				putLost(b, msg)
				settle()
				wantSame(t, "dead letters", b.Ready(DefaultQueue+deadSuffix), c.dead)
				if responses := takeResponses(b); len(responses) != 1 {
					t.Errorf("%d responses", len(responses))
				} else if c.dead == 0 {
					wantSame(t, "caller", string(responses[0].Body), c.user)
				}
			})
		})
	}
}

// The retry queue has the bounds of the request queue, and an unbounded one is used as it is.
func TestRetryQueueIsBounded(t *testing.T) {
	t.Parallel()
	for name, exists := range map[string]bool{"new": false, "of an earlier version": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				b := brokertest.New()
				retry := DefaultQueue + retrySuffix
				if exists {
					b.With(func(b *brokertest.Broker) { _ = b.Declare(retry, true, nil) })
				}
				log, logs := observed(zap.WarnLevel)
				s := startServer(t, b, handlers{"m": echo}, WithQueue(Queue{Name: DefaultQueue, MaxLength: 7}), WithLogger(log))
				ready(t, s.WaitReady)
				b.With(func(b *brokertest.Broker) {
					wantSame(t, "bound", b.Queues[retry].MaxLength, map[bool]int{false: 7}[exists])
					wantSame(t, "consumers", len(b.Queues[retry].Consumers), 1)
				})
				warned := logs.FilterMessageSnippet("other properties").Len()
				wantSame(t, "warned", warned, map[bool]int{true: 1}[exists])
			})
		})
	}
}
