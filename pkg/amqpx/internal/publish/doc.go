// Package publish sends the messages of a client or server: the outbox, which outlives
// sessions, the publisher of one session, which reports the result of every message, and the
// batcher, which lets waiting messages travel together. It knows neither calls nor responses:
// they implement Outbound, and Batchable if they can travel in a batch.
package publish
