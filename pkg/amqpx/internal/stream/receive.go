package stream

import "rabbitmq-rpc/pkg/amqpx/internal/wire"

// receive handles a frame of the peer. It returns false if the stream has ended. The caller holds mu.
func (s *Stream) receive(f *wire.Frame, body int) {
	s.peerTaken = max(s.peerTaken, f.Taken)
	if f.CreditItems > s.creditItems || f.CreditBytes > s.creditBytes {
		s.creditItems, s.creditBytes = max(s.creditItems, f.CreditItems), max(s.creditBytes, f.CreditBytes)
		s.ready()
	}
	if !s.table.cfg.Server && !s.headersDone {
		if !s.receiveHeaders(f.Headers) {
			return
		}
		if s.headersDone = f.HeadersDone || f.Items.Count > 0 || f.End != nil; s.headersDone {
			s.receivable.notify()
		}
	}
	if f.Items.Count > 0 && !s.receiveItems(f, body) {
		return
	}
	if f.HalfClose && s.table.cfg.Server {
		if f.Items.Count == 0 && f.Seq != s.receivedItems {
			s.violated(ReasonGap, "data_loss", "items are missing")
			return
		}
		s.halfReceived = true
		s.receivable.notify()
	}
	switch {
	case f.Reset != nil:
		s.wasReset(f.Reset)
	case f.End == nil || s.table.cfg.Server:
	case f.End.Items != s.receivedItems:
		s.violated(ReasonGap, "data_loss", "items are missing")
	default:
		s.peerTaken = max(s.peerTaken, f.End.Taken)
		s.finish(&Result{Reason: ReasonEnd, End: f.End})
		s.leave()
	}
}

// receiveHeaders stores headers of the server. It returns false if the stream has ended, because the
// server has sent too many. The caller holds mu.
func (s *Stream) receiveHeaders(headers []wire.StreamHeader) bool {
	for i := range headers {
		s.peerHeaderBytes += len(headers[i].Name) + len(headers[i].Value) + headerOverhead
	}
	if s.peerHeaderBytes > maxHeaders {
		s.violated(ReasonMalformed, "resource_exhausted", "too many headers")
		return false
	}
	s.peerHeaders = append(s.peerHeaders, headers...)
	return true
}

// wasReset ends the stream because of a reset of the peer. The caller holds mu.
func (s *Stream) wasReset(end *wire.End) {
	s.peerTaken = max(s.peerTaken, end.Taken)
	s.in, s.inItems, s.inBytes = nil, 0, 0
	s.finish(&Result{Reason: ReasonReset, End: end})
	s.leave()
}

// receiveItems stores the items of a frame, whose message has a body of this size. It returns false
// if the stream has ended. The caller holds mu.
func (s *Stream) receiveItems(f *wire.Frame, body int) bool {
	count, bytes := uint64(f.Items.Count), uint64(f.Items.Bytes) //nolint:gosec // never negative.
	switch {
	case f.Seq < s.receivedItems: // a duplicate
		return true
	case f.Seq > s.receivedItems, s.halfReceived:
		s.violated(ReasonGap, "data_loss", "items are missing, or follow the last")
		return false
	case s.receivedItems+count > s.grantedItems, s.receivedBytes+bytes-uint64(f.Items.Last) >= s.grantedBytes: //nolint:gosec // never negative.
		s.violated(ReasonCredit, "resource_exhausted", "more items than the credit allows")
		return false
	}
	s.peerBlocked = f.Blocked
	s.receivedItems += count
	s.receivedBytes += bytes
	if s.end != nil { // nobody takes them
		return true
	}
	s.inItems += f.Items.Count
	s.inBytes += f.Items.Bytes
	s.store(f.Items, body)
	s.receivable.notify()
	return true
}

// maxCopied bounds the memory to which further copies of items are added.
const maxCopied = 16 << 10

// store adds received items to the items that wait. Items that make up most of a message refer to
// the memory of the message. Smaller items are copied, because a single item would keep the memory of
// the whole message. The caller holds mu.
func (s *Stream) store(items wire.Items, body int) {
	if items.Bytes >= body-body/4 {
		s.in = append(s.in, items)
		return
	}
	if n := len(s.in); n > 0 && s.in[n-1].Copied() && s.in[n-1].Size()+items.Size() <= maxCopied {
		s.in[n-1].AppendAll(items)
		return
	}
	s.in = append(s.in, items.Copy())
}

// violated resets the stream because the peer broke a rule. The caller holds mu.
func (s *Stream) violated(reason Reason, code, text string) {
	s.abandon(&Result{Reason: reason}, &wire.End{Failure: &wire.Failure{Code: code, Message: text}})
}
