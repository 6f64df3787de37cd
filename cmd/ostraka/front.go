package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"github.com/ostraka/ostraka/console"
)

// front answers at the address of clients, from the moment it listens. As long as the process waits, for a cluster to join or for
// its drives, who operates it hears the reason at once. Requests for S3 are held for a while: a start takes seconds, and a client that is
// refused has used up its tries by then.
type front struct {
	s3      bool          // S3 will be served
	hold    time.Duration // for requests for S3
	held    chan struct{} // a place for each request that is held
	reason  atomic.Pointer[string]
	handler http.Handler // valid once opened is closed
	opened  chan struct{}
	ended   <-chan struct{} // the process is stopping
}

// While the process starts requests for S3 are held, so many at most and so long.
const (
	maxHeld      = 1000
	holdRequests = 30 * time.Second
)

func newFront(ctx context.Context, s3 bool) *front {
	f := &front{s3: s3, hold: holdRequests, held: make(chan struct{}, maxHeld), opened: make(chan struct{}), ended: ctx.Done()}
	f.waits("this process is starting")
	return f
}

// waits says for what the process waits.
func (f *front) waits(reason string) { f.reason.Store(&reason) }

// open has h answer from now on. It is called once.
func (f *front) open(h http.Handler) {
	f.handler = h
	close(f.opened)
}

// waited holds a request until there is a handler, and reports whether there is.
func (f *front) waited(r *http.Request) bool {
	select {
	case <-f.opened:
		return true
	default:
	}
	if strings.HasPrefix(r.URL.Path, "/-/") || !f.s3 {
		return false
	}
	select {
	case f.held <- struct{}{}:
		defer func() { <-f.held }()
	default:
		return false
	}
	timer := time.NewTimer(f.hold)
	defer timer.Stop()
	select {
	case <-f.opened:
		return true
	case <-timer.C:
	case <-f.ended:
	case <-r.Context().Done():
	}
	return false
}

// ServeHTTP implements http.Handler.
func (f *front) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if f.waited(r) {
		f.handler.ServeHTTP(w, r)
		return
	}
	w.Header().Set("Retry-After", "1")
	// A body that nobody reads would be taken for the next request.
	w.Header().Set("Connection", "close")
	switch {
	case r.URL.Path == "/-/live":
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprintln(w, `{"status":"live"}`)
	case strings.HasPrefix(r.URL.Path, "/-/") || !f.s3:
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusServiceUnavailable)
		_ = json.NewEncoder(w).Encode(console.Readiness{Status: "not ready", Reason: *f.reason.Load()}) // the client may be gone
	default:
		w.Header().Set("Content-Type", "application/xml")
		w.WriteHeader(http.StatusServiceUnavailable)
		if r.Method != http.MethodHead {
			fmt.Fprint(w, `<?xml version="1.0" encoding="UTF-8"?>`+"\n<Error><Code>ServiceUnavailable</Code><Message>The service is starting. Please try again.</Message></Error>")
		}
	}
}
