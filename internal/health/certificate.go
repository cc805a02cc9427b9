package health

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
)

const (
	// certificateNotice is the time before a certificate's end at which warnings start.
	certificateNotice = 14 * 24 * time.Hour
	// certificateCheck is the interval of the warnings.
	certificateCheck = 24 * time.Hour
)

// CertificateEnd returns the end of the client's certificate, or false if there is none.
type CertificateEnd func() (end time.Time, ok bool)

// certificateCollector reports the end of a certificate, if there is a certificate.
type certificateCollector struct {
	end         CertificateEnd
	description *prometheus.Desc
}

// CertificateMetric returns the metric of the end of the client's certificate. It calls end at
// each scrape.
func CertificateMetric(end CertificateEnd) prometheus.Collector {
	return &certificateCollector{end: end, description: prometheus.NewDesc("rabbitmq_rpc_certificate_not_after_seconds",
		"When the client's TLS certificate ends, in seconds since the epoch; absent without one.", nil, nil)}
}

// Describe implements [prometheus.Collector].
func (c *certificateCollector) Describe(to chan<- *prometheus.Desc) { to <- c.description }

// Collect implements [prometheus.Collector].
func (c *certificateCollector) Collect(to chan<- prometheus.Metric) {
	if end, ok := c.end(); ok {
		to <- prometheus.MustNewConstMetric(c.description, prometheus.GaugeValue, float64(end.Unix()))
	}
}

// WatchCertificate logs, at once and then daily, if the client's certificate ends within 14
// days or has ended. stop ends the watch and returns when the goroutine has ended.
func WatchCertificate(ctx context.Context, end CertificateEnd, logger *zap.Logger) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() { // ends with ctx, which stop ends
		defer close(done)
		ticker := time.NewTicker(certificateCheck)
		defer ticker.Stop()
		for {
			warnOfEnd(end, logger)
			select {
			case <-ticker.C:
			case <-ctx.Done():
				return
			}
		}
	}()
	return func() {
		cancel()
		<-done
	}
}

func warnOfEnd(end CertificateEnd, logger *zap.Logger) {
	at, ok := end()
	if !ok {
		return
	}
	switch left := time.Until(at); {
	case left <= 0:
		logger.Error("the client's certificate has ended", zap.Time("not_after", at))
	case left < certificateNotice:
		logger.Warn("the client's certificate ends soon", zap.Time("not_after", at), zap.Int("days_left", int(left/(24*time.Hour))))
	}
}
