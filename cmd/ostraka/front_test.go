package main

import (
	"context"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

func TestWhoAsksAProcessThatWaitsHearsWhy(t *testing.T) {
	ask := func(f *front, path string) (int, string) {
		w := httptest.NewRecorder()
		f.ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
		return w.Code, w.Body.String()
	}
	f := newFront(t.Context(), true)
	f.hold = 0
	for _, c := range []struct {
		path, has string
		status    int
	}{
		{"/-/live", "live", 200},
		{"/-/ready", "starting", 503},
		{"/-/admin/v1/info", "starting", 503},
		{"/bucket/key", "<Code>ServiceUnavailable</Code>", 503},
	} {
		if status, body := ask(f, c.path); status != c.status || !strings.Contains(body, c.has) {
			t.Errorf("%s: %d %s", c.path, status, body)
		}
	}
	f.waits("nobody answers")
	if _, body := ask(f, "/-/ready"); !strings.Contains(body, "nobody answers") {
		t.Errorf("the reason: %s", body)
	}
	if _, body := ask(newFront(t.Context(), false), "/bucket/key"); strings.Contains(body, "<Error>") {
		t.Errorf("S3 by who never serves it: %s", body)
	}
	f.hold = time.Hour
	held := make(chan int)
	go func() { // is waited for below
		status, _ := ask(f, "/bucket/key")
		held <- status
	}()
	f.open(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusTeapot) }))
	if status, _ := ask(f, "/-/ready"); status != http.StatusTeapot {
		t.Errorf("open, and the answer is %d", status)
	}
	if status := <-held; status != http.StatusTeapot {
		t.Errorf("who was held is answered %d", status)
	}

	f = newFront(t.Context(), true)
	f.hold, f.held = time.Hour, make(chan struct{}) // as many are held as may be
	if status, _ := ask(f, "/bucket/key"); status != http.StatusServiceUnavailable {
		t.Errorf("one more than are held is answered %d", status)
	}

	stopping, stop := context.WithCancel(t.Context())
	f = newFront(stopping, true)
	f.hold = time.Hour
	stop()
	if status, _ := ask(f, "/bucket/key"); status != http.StatusServiceUnavailable {
		t.Errorf("who was held is answered %d by a process that stops", status)
	}
}
