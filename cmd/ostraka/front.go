package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"

	"github.com/ostraka/ostraka/console"
)

// front answers at the address of clients, from the moment it listens: as long as the process waits, for a cluster to join or for its
// drives, with 503 and the reason.
type front struct {
	s3      bool // S3 will be served
	reason  atomic.Pointer[string]
	handler atomic.Pointer[http.Handler]
}

func newFront(s3 bool) *front {
	f := &front{s3: s3}
	f.waits("this process is starting")
	return f
}

// waits says for what the process waits.
func (f *front) waits(reason string) { f.reason.Store(&reason) }

// open has h answer from now on.
func (f *front) open(h http.Handler) { f.handler.Store(&h) }

// ServeHTTP implements http.Handler.
func (f *front) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if h := f.handler.Load(); h != nil {
		(*h).ServeHTTP(w, r)
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
