package amqpx

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	amqp "github.com/rabbitmq/amqp091-go"
	"go.uber.org/zap"

	"rabbitmq-rpc/pkg/amqpx/internal/wire"
)

// A server publishes responses to the queue that a request names in reply_to, over the default
// exchange, so a caller could let other clients receive responses. WithReplyPrefix bounds the
// queues by their names.

// The placeholders in the templates of WithReplyPrefix.
const (
	placeholderQueue = "{queue}"
	placeholderUser  = "{user}"
)

// replyPrefix is a template of WithReplyPrefix.
type replyPrefix struct {
	before, after string // of the user; after is empty without a user
	hasUser       bool
}

// WithReplyPrefix lets a server respond only to reply_to that begin with one of the prefixes. In
// a prefix, "{queue}" is the name of the request queue, and "{user}" the user of the request as
// in the names of reply queues: the user that the broker has validated ([Request.User]), with
// "%" and two hexadecimal digits for every byte other than an ASCII letter, a digit, "-" and
// "_", or "~" and a hash for a long name. The reply queues of clients of this package begin
// with "{queue}.reply.{user}.". A request without a validated user matches no prefix with
// "{user}".
//
// A request with another reply_to is acknowledged, and neither run nor answered; it is counted
// ([ServerStats]) and logged. Queries of the control plane get no response then. The addresses
// of direct reply-to ([ReplyDirect]) name no user: they are refused unless a prefix allows
// them, such as "amq.rabbitmq.reply-to.". One-way requests have no reply_to and run; so do dead
// letters that were moved back to the queue without their caller, without a response. The default,
// no prefix, allows every reply_to.
func WithReplyPrefix(prefixes ...string) ServerOption {
	return serverOption(func(c *serverConfig) { c.replyTemplates = prefixes })
}

// parseReplyPrefixes parses the templates of WithReplyPrefix.
func (c *serverConfig) parseReplyPrefixes() error {
	var faults []error
	for _, template := range c.replyTemplates {
		p, err := parseReplyPrefix(template, c.queue.Name)
		if err == nil && p.hasUser && !c.userID {
			err = errors.New("WithUserID is off, so no request has a user")
		}
		if err != nil {
			faults = append(faults, fmt.Errorf("reply prefix %q: %w", template, err))
		}
		c.replyPrefixes = append(c.replyPrefixes, p)
	}
	return errors.Join(faults...)
}

func parseReplyPrefix(template, queue string) (p replyPrefix, err error) {
	if template == "" {
		return p, errors.New("an empty prefix allows every reply_to")
	}
	p.before, p.after, p.hasUser = strings.Cut(template, placeholderUser)
	for _, part := range []*string{&p.before, &p.after} {
		text := strings.ReplaceAll(*part, placeholderQueue, "")
		if strings.ContainsAny(text, "{}") {
			return p, fmt.Errorf("want the placeholders %s and, once, %s", placeholderQueue, placeholderUser)
		}
		*part = strings.ReplaceAll(*part, placeholderQueue, queue)
	}
	if p.hasUser && (p.after == "" || isPlainInName(p.after[0]) || p.after[0] == '%') {
		return p, fmt.Errorf(`want a character after %s that no name of a user has, such as "."`, placeholderUser)
	}
	return p, nil
}

// allows reports whether a reply_to of a user's request begins with the prefix.
func (p *replyPrefix) allows(replyTo, user string) bool {
	rest, ok := strings.CutPrefix(replyTo, p.before)
	if !ok || !p.hasUser {
		return ok
	}
	rest, ok = strings.CutPrefix(rest, userInName(user))
	return ok && user != "" && strings.HasPrefix(rest, p.after)
}

// mayRespond reports whether the server may publish a response to the reply_to of a message
// from a user.
func (s *Server) mayRespond(replyTo, user string) bool {
	prefixes := s.cfg.replyPrefixes
	return len(prefixes) == 0 || replyTo == "" ||
		slices.ContainsFunc(prefixes, func(p replyPrefix) bool { return p.allows(replyTo, user) })
}

// refuseReplyTo makes a request one-way and failed: it is not run, and gets no response.
func (s *Server) refuseReplyTo(req *inboundRequest) {
	s.counts.replyRefused.Add(1)
	req.in.OneWay = true
	req.failed = refusal(CodePermissionDenied, "the reply_to is not one of the caller's reply queues")
}

// warnReplyTo logs that a message was refused because of its reply_to.
func (s *Server) warnReplyTo(d *amqp.Delivery, user string) {
	s.logs.replyTo.of(s.cfg.logger).Warn("refused a message whose reply_to does not belong to its sender, or is not allowed",
		zap.String("reply_to", wire.Truncate(d.ReplyTo, wire.MaxShortString)), zap.String("user", user),
		zap.String("correlation_id", wire.Truncate(d.CorrelationId, wire.MaxShortString)))
}

// acceptDeadLetter makes a dead letter that an operator has moved back to the request queue a
// one-way request, and reports whether the request is one. Such a request has no user unless it was
// moved back with a trusted user, and its caller has already received an error. A caller who forges
// the header only gives up the response.
func (req *inboundRequest) acceptDeadLetter() bool {
	if _, dead := req.delivery.message.Headers[wire.HeaderDeadReason]; !dead {
		return false
	}
	req.in.OneWay = true
	return true
}
