//go:build fault

package fault

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	amqp "github.com/rabbitmq/amqp091-go"

	"rabbitmq-rpc/test/fault/internal/check"
	"rabbitmq-rpc/test/internal/rig"
)

// floods is the number of consecutive floods. A server's memory after the last flood is
// compared with its memory after the previous flood.
const floods = 3

// floodScenarios send a hundred thousand useless messages at a time.
func floodScenarios() []scenario {
	gentle := with(func(l *load) { l.rate = 200 })
	rules := check.Rules{AllOK: true, IdempotentOK: true}
	return []scenario{
		{
			name: "flood-unknown", about: "100,000 requests for unknown functions",
			load: gentle, rules: rules, times: floods, fault: flood(unknown),
		},
		{
			name: "flood-malformed", about: "100,000 malformed messages of ten kinds",
			load: gentle, rules: rules, times: floods, fault: flood(malformed),
		},
	}
}

const (
	floodSize = 100_000
	// floodWindow bounds the messages of a flood in the queue.
	floodWindow = 1000
)

// flood returns a fault that sends messages and waits for the responses to the answerable
// messages.
func flood(message func(i int, inbox string) amqp.Publishing) func(*stage) {
	return func(s *stage) {
		s.t.Helper()
		conn := rig.Dial(s.t, s.tenant.URL())
		defer func() { _ = conn.Close() }()
		ch, inbox, responses := s.mailbox(conn)
		answerable := 0
		for i := range floodSize {
			msg := message(i, inbox)
			if msg.ReplyTo == inbox {
				answerable++
			}
			word, err := ch.PublishWithDeferredConfirm("", queueName, true, false, msg)
			if err != nil {
				s.t.Fatal(err)
			}
			if (i+1)%floodWindow == 0 {
				rig.Recv(s.t, word.Done(), "the broker to take the flood")
				for ; answerable > 0; answerable-- {
					rig.Recv(s.t, responses, "a response to the flood")
				}
			}
		}
		rig.Eventually(s.t, "the flood is over", func() bool { return s.waiting(queueName) == 0 })
		for _, p := range s.servers {
			s.held[p.name] = append(s.held[p.name], resident(s, p.pid()))
		}
	}
}

// mailbox opens a channel in confirm mode, with an exclusive queue for responses.
func (s *stage) mailbox(conn *amqp.Connection) (ch *amqp.Channel, name string, responses <-chan amqp.Delivery) {
	s.t.Helper()
	ch, err := conn.Channel()
	if err != nil {
		s.t.Fatal(err)
	}
	if err := ch.Confirm(false); err != nil {
		s.t.Fatal(err)
	}
	q, err := ch.QueueDeclare("", false, false, true, false, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	if responses, err = ch.Consume(q.Name, "", true, true, false, false, nil); err != nil {
		s.t.Fatal(err)
	}
	return ch, q.Name, responses
}

func unknown(i int, inbox string) amqp.Publishing {
	return amqp.Publishing{
		AppId: fmt.Sprintf("unknown-%d", i), ReplyTo: inbox, CorrelationId: strconv.Itoa(i), Body: []byte("request"),
	}
}

// malformed returns messages of ten kinds, half of them answerable.
func malformed(i int, inbox string) amqp.Publishing {
	m := unknown(i, inbox)
	switch i % 10 {
	case 0:
		m.AppId = ""
	case 1:
		m.CorrelationId = ""
	case 2:
		m.Headers = amqp.Table{"rpc-timeout-ms": "soon"}
	case 3:
		m.Headers = amqp.Table{"rpc-idempotent": "yes"}
	case 4:
		m.Headers = amqp.Table{"rpc-timeout-ms": amqp.Table{"a": []any{int32(1), nil}}, "rpc-deliveries": "many"}
	case 5:
		m.ReplyTo = "amq.rabbitmq.reply-to.nobody"
	case 6:
		m.AppId, m.ReplyTo = "", ""
	case 7:
		m.ReplyTo = "nobody-has-this-queue"
	case 8:
		m.AppId, m.ReplyTo, m.CorrelationId = "", "", strings.Repeat("\xff", 255)
	default:
		m.AppId, m.ReplyTo = strings.Repeat("\x00", 255), strings.Repeat("x", 255)
	}
	return m
}

// resident returns the resident memory of a process in bytes.
func resident(s *stage, pid int) float64 {
	s.t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	if err != nil {
		s.t.Fatal(err)
	}
	var size, pages int
	if _, err := fmt.Sscan(string(text), &size, &pages); err != nil {
		s.t.Fatal(err)
	}
	return float64(pages * os.Getpagesize())
}

// judgeMemory proves that the servers' memory changed by at most a fifth.
func (s *stage) judgeMemory() (problems []string) {
	const slack = 0.2
	for name, held := range s.held {
		before, last := held[floods-2], held[floods-1]
		s.t.Logf("%s held %.0f bytes after each flood", name, held)
		if last > before*(1+slack) || last < before*(1-slack) {
			problems = append(problems, fmt.Sprintf("%s held %.0f bytes, and %.0f after another flood", name, before, last))
		}
	}
	return problems
}
