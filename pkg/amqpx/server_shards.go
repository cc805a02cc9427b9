package amqpx

import (
	"slices"
	"sync"
	"sync/atomic"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
	"go.uber.org/zap"

	"rabbitmq-rpc/pkg/amqpx/internal/transport"
)

// Shards in a server. Shard 0 is the request queue, and each further shard a companion with a channel
// of its own: a queue whose node is down, or that is deleted, only affects its own subscription. A
// server also consumes the shards that exist beyond its own number, which are called retiring: a
// client with the larger number may still use them.

const (
	// noShard is the shard of a queue that is not the batch queue of a shard, or a shard.
	noShard = -1
	// minShardPrefetch is the least prefetch of each of several shards.
	minShardPrefetch = 16
	// shardRetry is the first pause before the next attempt to consume a shard.
	shardRetry = 100 * time.Millisecond
)

// shardPrefetch returns the prefetch of each request queue and batch queue.
func (c *serverConfig) shardPrefetch() int {
	if c.shards == 1 {
		return c.prefetch
	}
	return min(c.prefetch, max(c.prefetch/c.shards, minShardPrefetch))
}

// requestQueue is a queue from which servers take the requests of clients: a shard, or the batch queue
// of a shard.
type requestQueue struct {
	Queue

	shard   int
	home    string // the shard's name
	batches bool
}

// requestQueues returns the request queues of the shards from first to shards-1, each followed by its
// batch queue if batches is true. base is shard 0.
func requestQueues(base Queue, first, shards int, batches bool) (all []requestQueue) {
	for i := first; i < shards; i++ {
		q := base.shard(i)
		all = append(all, requestQueue{Queue: q, shard: i, home: q.Name})
		if batches {
			all = append(all, requestQueue{Queue: q.batchQueue(), shard: i, home: q.Name, batches: true})
		}
	}
	return all
}

// shardCompanions returns the companions for request queues; shard 0 is none.
func (s *Server) shardCompanions(queues []requestQueue) (all []*companion) {
	var shard *companion
	for _, q := range queues {
		if q.shard == 0 && !q.batches {
			continue
		}
		k := &companion{queue: q.Queue, prefetch: s.cfg.shardPrefetch(), shard: q.shard, home: q.home, unpacks: q.batches, up: new(atomic.Bool)}
		switch {
		case !q.batches:
			shard = k
		case q.shard == 0:
			k.up = &s.batchesUp
		default:
			k.besides = shard
		}
		all = append(all, k)
	}
	return all
}

// isShard reports whether the companion is a shard.
func (k *companion) isShard() bool { return k.shard > 0 && !k.unpacks }

// requests returns the consumer of the queue to which requests are returned; nil if there is none.
func (k *companion) requests(main *consumer) *consumer {
	switch {
	case k.besides != nil:
		return k.besides.current.Load()
	case k.isShard():
		return k.current.Load()
	default:
		return main
	}
}

// declareCompanion declares the queue of a companion.
func (s *Server) declareCompanion(sess *transport.Session, k *companion) error {
	if k.all {
		return s.declareAll(sess, k)
	}
	if k.adopts {
		return transport.AtStep(transport.StepDeclare, k.queue.Name, queueExists(sess, k.queue.Name))
	}
	_, err := k.queue.declareOrAdopt(sess.Sub, func(reason string) { s.warnAdopted(k.queue, reason, "") })
	return err
}

// queueExists returns nil if a queue exists.
func queueExists(sess *transport.Session, name string) error {
	return transport.WithTempChannel(sess.Sub, func(ch transport.Channel) error {
		_, err := ch.QueueDeclarePassive(name, true, false, false, false, nil)
		return err
	})
}

// companionSet holds the companions of a session. Safe for concurrent use.
type companionSet struct {
	mu  sync.Mutex
	all []*companion
}

// named returns the companion with a queue, or nil.
func (c *companionSet) named(queue string) *companion {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, k := range c.all {
		if k.queue.Name == queue {
			return k
		}
	}
	return nil
}

// add adds a companion.
func (c *companionSet) add(k *companion) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.all = append(c.all, k)
}

// retiringShards holds the numbers of the shards found beyond those of the server. The zero value is
// ready to use. Safe for concurrent use.
type retiringShards struct {
	mu    sync.Mutex
	found []int
}

func (r *retiringShards) reset() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.found = nil
}

func (r *retiringShards) add(i int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.found = append(r.found, i)
}

// remove removes the number of a shard that was deleted.
func (r *retiringShards) remove(i int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.found = slices.DeleteFunc(r.found, func(n int) bool { return n == i })
}

// isGone reports whether a shard beyond the server's own was deleted since the server found it.
func (s *Server) isGone(shard int) bool {
	return shard >= s.cfg.shards && !slices.Contains(s.retiring.numbers(), shard)
}

// numbers returns the numbers in ascending order.
func (r *retiringShards) numbers() []int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.found)
}

// findRetiring looks for shards beyond those of this server, upwards to the first that does not exist,
// and consumes them until the session ends.
func (s *Server) findRetiring(main *consumer, set *companionSet, bindings *requestBindings) {
	for i := s.cfg.shards; i < MaxShards; i++ {
		q := s.cfg.queue.shard(i)
		if !s.isRetiring(main.sess, q) {
			return
		}
		s.retiring.add(i)
		if s.firstTime(q.Name) {
			s.cfg.logger.Info("a shard beyond the server's own exists and is consumed too", zap.String("queue", q.Name), zap.Int("shards", s.cfg.shards))
		}
		for _, k := range s.shardCompanions(requestQueues(s.cfg.queue, i, i+1, s.cfg.batch == BatchAuto)) {
			k.adopts, k.missing = true, make(chan struct{}, 1)
			set.add(k)
			main.sess.Run(func() { s.keepCompanion(main, k, bindings, make(chan struct{})) })
		}
	}
}

// isRetiring reports whether a queue exists and is a shard. The request queue of another service may
// have the name of a shard; its servers have an exchange for their control plane. A broker that does
// not answer for the queue has it on a node that is down.
func (s *Server) isRetiring(sess *transport.Session, q Queue) bool {
	timer := time.NewTimer(companionWait)
	defer timer.Stop()
	select {
	case err := <-sess.InGoroutine(func() error { return queueExists(sess, q.Name) }):
		if err != nil {
			return false
		}
	case <-timer.C:
	case <-sess.Done:
		return false
	}
	err := transport.WithTempChannel(sess.Sub, func(ch transport.Channel) error {
		return ch.ExchangeDeclarePassive(q.controlExchange(), amqp.ExchangeFanout, true, false, false, false, nil)
	})
	if !transport.IsNotFound(err) && !sess.Ended() {
		s.cfg.logger.Warn("a queue with the name of a shard belongs to another service and is not consumed", zap.String("queue", q.Name), zap.Error(err))
	}
	return transport.IsNotFound(err)
}

// countShard counts requests received from a shard.
func (c *consumer) countShard(n int) {
	if c.shard >= 0 {
		c.server.shardRequests[c.shard].Add(uint64(n)) //nolint:gosec // a length is never negative.
	}
}

// requestsByShard returns the number of requests from each shard, if there are several.
func (s *Server) requestsByShard(retiring []int) []uint64 {
	n := s.cfg.shards
	if len(retiring) > 0 {
		n = retiring[len(retiring)-1] + 1
	}
	if n == 1 {
		return nil
	}
	all := make([]uint64, n)
	for i := range all {
		all[i] = s.shardRequests[i].Load()
	}
	return all
}
