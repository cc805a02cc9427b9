// Package rig is what the tests against a real broker share: queues of their own,
// servers and clients that are ended with the test, raw access to the broker, its
// management API, a proxy that loses links on command, and private brokers.
//
// The broker under test comes from the environment, as `deploy/broker.sh env`
// prints it. A missing variable is a failure, never a skip: a pipeline must not
// stay green because of a typo.
package rig
