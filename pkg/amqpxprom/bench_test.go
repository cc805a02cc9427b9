package amqpxprom

import (
	"strconv"
	"testing"
	"time"

	"rabbitmq-rpc/pkg/amqpx"
)

// atOnce runs f on one goroutine, and then on one goroutine per processor.
func atOnce(b *testing.B, f func(i int)) {
	b.Helper()
	b.Run("alone", func(b *testing.B) {
		b.ReportAllocs()
		for i := 0; b.Loop(); i++ {
			f(i)
		}
	})
	b.Run("parallel", func(b *testing.B) {
		b.ReportAllocs()
		b.RunParallel(func(pb *testing.PB) {
			for i := 0; pb.Next(); i++ {
				f(i)
			}
		})
	})
}

// after spreads the calls over some of a histogram's buckets.
func after(i int) time.Duration { return time.Duration(i%5000) * time.Microsecond }

func BenchmarkCallSettled(b *testing.B) {
	m := NewClientMetrics("q")
	atOnce(b, func(i int) { m.CallSettled("b", "", after(i)) })
}

func BenchmarkCallSettledWithNativeHistograms(b *testing.B) {
	m := NewClientMetrics("q", WithNativeHistograms(true))
	atOnce(b, func(i int) { m.CallSettled("b", "", after(i)) })
}

func BenchmarkCallSettledByOtherNames(b *testing.B) {
	m := NewClientMetrics("q")
	names := make([]string, 10_000)
	for i := range names {
		names[i] = "method " + strconv.Itoa(i)
	}
	atOnce(b, func(i int) { m.CallSettled(names[i%len(names)], amqpx.CodeUnavailable, after(i)) })
}

func BenchmarkHandlerEnded(b *testing.B) {
	m := NewServerMetrics("q")
	atOnce(b, func(i int) { m.HandlerEnded("b", "", after(i/2), after(i)) })
}

func BenchmarkRequestRefused(b *testing.B) {
	m := NewServerMetrics("q")
	atOnce(b, func(int) { m.RequestRefused("b", amqpx.CodeResourceExhausted) })
}

func BenchmarkBatchSent(b *testing.B) {
	m := NewClientMetrics("q")
	atOnce(b, func(i int) { m.BatchSent(2 + i%500) })
}

func BenchmarkCollect(b *testing.B) {
	m := NewServerMetrics("q")
	m.Watch(serverSource{})
	for i := range 5000 {
		m.HandlerEnded("b", "", after(i/2), after(i))
	}
	b.ReportAllocs()
	for b.Loop() {
		gather(b, m)
	}
}
