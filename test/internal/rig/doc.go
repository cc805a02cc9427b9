// Package rig is the shared support of the tests against a real broker: queues for a single
// test, servers and clients ended with the test, raw access to the broker, its management API,
// a proxy to cut connections on command, and private brokers.
//
// The broker under test is configured by environment variables, as printed by
// `deploy/broker.sh env`. A missing variable is a failure, never a skip: a typo must not keep
// a pipeline green.
package rig
