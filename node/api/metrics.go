package api

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"time"
)

const (
	// metricsTime bounds one answer: who reads more slowly is not Prometheus.
	metricsTime = 10 * time.Second
	// metricsHeader bounds the header of a request; Prometheus sends 300 bytes.
	metricsHeader = 4 << 10
)

// ServeMetrics answers GET /metrics on ln with what write writes, in Prometheus'
// text format, until ctx ends. It closes ln. Whoever reaches ln reads it: there
// is nothing in counts to be kept from anyone, but no reason either to show them
// to the world.
func ServeMetrics(ctx context.Context, ln net.Listener, write func(io.Writer) error) error {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /metrics", func(w http.ResponseWriter, _ *http.Request) {
		var b bytes.Buffer // whole, or not at all
		if write(&b) != nil {
			http.Error(w, "the counts can not be read", http.StatusInternalServerError)
			return
		}
		w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
		_, _ = b.WriteTo(w) // a reader who has gone
	})
	server := http.Server{
		Handler:           mux,
		ReadHeaderTimeout: headerTime,
		ReadTimeout:       headerTime,
		WriteTimeout:      metricsTime,
		IdleTimeout:       idleTime,
		MaxHeaderBytes:    metricsHeader,
		ErrorLog:          slog.NewLogLogger(slog.DiscardHandler, slog.LevelError),
	}
	ended := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(ended)
		server.Close()
	})
	err := server.Serve(ln)
	if stop() {
		server.Close()
		return fmt.Errorf("metrics: %w", err)
	}
	<-ended
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}
