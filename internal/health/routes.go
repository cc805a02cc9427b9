package health

import (
	"encoding/json"
	"net/http"

	"go.uber.org/zap"
)

// routes returns the handler of the service's paths; pings is nil without a pinger.
func routes(answered service, pings *pings, logger *zap.Logger) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) {
		write(w, http.StatusOK, map[string]string{"state": "alive"})
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		ready, response := answered.ready()
		code := http.StatusServiceUnavailable
		if ready {
			code = http.StatusOK
		}
		write(w, code, response)
	})
	if pings != nil {
		mux.Handle("GET /pingz", pings)
	}
	if answered.metrics != nil {
		mux.Handle("GET /metrics", metrics(answered.metrics, logger))
	}
	return mux
}

func write(w http.ResponseWriter, code int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(code)
	encoder := json.NewEncoder(w)
	encoder.SetEscapeHTML(false) // people read the body, browsers do not
	// An error here means that the client has gone.
	_ = encoder.Encode(body)
}
