package health

import (
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
)

func TestCertificateMetric(t *testing.T) {
	t.Parallel()
	end, ok := time.Unix(1234567890, 5), false
	registry := prometheus.NewRegistry()
	registry.MustRegister(CertificateMetric(func() (time.Time, bool) { return end, ok }))
	if families, err := registry.Gather(); len(families) != 0 || err != nil {
		t.Errorf("without a certificate: %v, %v", families, err)
	}
	ok = true
	families, err := registry.Gather()
	if err != nil || len(families) != 1 || families[0].GetMetric()[0].GetGauge().GetValue() != 1234567890 {
		t.Errorf("the metric is %v, %v", families, err)
	}
}

// Warnings start 14 days before a certificate's end and are logged daily until the certificate
// is replaced.
func TestEndOfTheCertificateIsWarnedOf(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		core, logs := observer.New(zap.DebugLevel)
		var end atomic.Pointer[time.Time]
		ends := func(after time.Duration) {
			at := time.Now().Add(after)
			end.Store(&at)
		}
		ends(15*24*time.Hour + time.Hour)
		defer WatchCertificate(t.Context(), func() (time.Time, bool) { return *end.Load(), true }, zap.New(core))()
		for day := range 18 {
			synctest.Wait()
			got, want := logs.TakeAll(), ""
			switch {
			case day >= 16:
				want = "the client's certificate has ended"
			case day >= 2:
				want = "the client's certificate ends soon"
			}
			if want == "" && len(got) != 0 || want != "" && (len(got) != 1 || got[0].Message != want) {
				t.Errorf("day %d: %v, want %q", day, got, want)
			}
			if want == "the client's certificate ends soon" && got[0].ContextMap()["days_left"] != int64(15-day) {
				t.Errorf("day %d: %v", day, got[0].ContextMap())
			}
			<-time.After(24 * time.Hour)
		}
		ends(90 * 24 * time.Hour)
		logs.TakeAll()
		<-time.After(24 * time.Hour)
		synctest.Wait()
		if got := logs.TakeAll(); len(got) > 0 {
			t.Errorf("after a new certificate: %v", got)
		}
	})
}
