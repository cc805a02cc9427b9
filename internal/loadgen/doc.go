// Package loadgen generates load: it makes calls in a closed loop, in which each caller waits
// for its response, or in an open loop, in which calls start at a constant rate whatever their
// responses do, and it counts results and latencies. rpc-client uses the [Runner], which checks
// responses and keeps [Results]; the benchmarks use the [Loop] and the [Recorder] alone.
package loadgen
