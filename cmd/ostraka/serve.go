package main

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/ostraka/ostraka/internal/errs"
)

// Bounds of a connection. There is no limit for a whole request, because bodies of terabytes are
// legitimate; but a peer has to move something within stallTimeout.
const (
	readHeaderTimeout = 15 * time.Second
	idleTimeout       = 2 * time.Minute
	stallTimeout      = time.Minute
	maxHeaderBytes    = 64 << 10 // s3api refuses what exceeds S3's own limit with S3's error
)

// serve answers on l until ctx ends, then stops accepting and lets running requests end, for drain
// at most. It returns nil when all of them did.
func serve(ctx context.Context, l net.Listener, h http.Handler, tlsConfig *tls.Config, drain time.Duration, logger *slog.Logger) error {
	srv := &http.Server{
		Handler:           noStall(h),
		ReadHeaderTimeout: readHeaderTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeaderBytes,
		ErrorLog:          log.New(httpLog{logger}, "", 0),
		TLSConfig:         tlsConfig,
	}
	failed := make(chan error, 1)
	go func() { // ends with Shutdown or Close below
		if tlsConfig != nil {
			failed <- srv.ServeTLS(l, "", "")
		} else {
			failed <- srv.Serve(l)
		}
	}()
	select {
	case err := <-failed:
		return &errs.Error{Op: "serve", Kind: errs.Internal, Msg: "the listener failed", Err: err}
	case <-ctx.Done():
	}
	logger.Info("stopping: no new requests, the running ones may end", "within", drain)
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), drain)
	defer cancel()
	err := srv.Shutdown(stop)
	if err != nil {
		// What is still running is cut off: it was never acknowledged.
		err = errors.Join(errs.E("serve", errs.Timeout, "requests were cut off because they did not end within the shutdown timeout"), srv.Close())
	}
	<-failed
	return err
}

// httpLog passes what net/http has to say to the log, as details: most of it is about clients.
type httpLog struct{ log *slog.Logger }

func (h httpLog) Write(p []byte) (int, error) {
	h.log.Debug("http", "msg", string(p))
	return len(p), nil
}

// noStall ends connections whose peer neither sends nor takes anything for stallTimeout, so that a
// dead client does not hold a request and its buffers for ever. The deadline moves at most every
// tenth of that, not with each call.
func noStall(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		rc := http.NewResponseController(w)
		var sending *movingBody // a body that the client sends whatever we answer
		if r.Body != nil && r.Body != http.NoBody {
			// In a copy of the request: net/http knows by the type of its own one's body how much of what
			// a handler left unread it may still take, and that the client waits for 100 Continue. It
			// takes that before the answer is sent, so the deadline holds from here on, read or not.
			b := &movingBody{ReadCloser: r.Body, move: deadline{set: rc.SetReadDeadline}}
			b.move.progress()
			// A client that announces Expect may send all the same: it need not wait. Where answer and
			// body cannot overlap by hand (HTTP/2), they do so anyway.
			if rc.EnableFullDuplex() == nil {
				sending = b
			}
			inner := *r
			inner.Body = b
			r = &inner
		}
		m := &movingWriter{ResponseWriter: w, move: deadline{set: rc.SetWriteDeadline}}
		// The deadline outlives a request on the connection: it is set anew for what is written
		// before the first Write (100 Continue) and after the last (an answer that is a head only).
		m.move.progress()
		defer func() {
			m.move.at = time.Time{}
			m.move.progress()
		}()
		next.ServeHTTP(m, r)
		if sending != nil && !sending.ended {
			sending.linger(rc)
		}
	})
}

// Bounds of what is taken in of a body after the answer to it.
const (
	lingerBytes = 64 << 20
	lingerTime  = 5 * time.Second
	lingerIdle  = time.Second // without a byte
)

// linger sends what was answered, and takes in the rest of the body for a while. A connection that
// is closed while the client still sends is reset, and a reset throws away the answer that the
// client has not read yet: it would see a broken connection instead of a 503. A client that waits
// for 100 Continue is not asked for its body by this, as its answer has begun.
func (b *movingBody) linger(rc *http.ResponseController) {
	if rc.Flush() != nil {
		return
	}
	end := time.Now().Add(lingerTime)
	buf := make([]byte, 32<<10)
	for n := 0; n < lingerBytes; {
		d := time.Now().Add(lingerIdle)
		if d.After(end) {
			d = end
		}
		if rc.SetReadDeadline(d) != nil {
			return
		}
		k, err := b.ReadCloser.Read(buf)
		n += k
		if errors.Is(err, io.EOF) {
			b.move.clear() // the connection may serve another request
		}
		if err != nil {
			return
		}
	}
}

// deadline moves a deadline ahead of progress.
type deadline struct {
	set func(time.Time) error
	at  time.Time // when it was last moved
}

func (d *deadline) progress() {
	if now := time.Now(); now.Sub(d.at) > stallTimeout/10 {
		d.at = now
		// A connection that knows no deadlines, or is closed, has nothing to move.
		_ = d.set(now.Add(stallTimeout))
	}
}

func (d *deadline) clear() {
	d.at = time.Time{}
	_ = d.set(time.Time{})
}

// movingBody is a request body. One goroutine reads at a time.
type movingBody struct {
	io.ReadCloser
	move  deadline
	ended bool // was read to its end
}

// Close does nothing: net/http closes the body itself, behind what linger still takes in.
func (b *movingBody) Close() error { return nil }

func (b *movingBody) Read(p []byte) (int, error) {
	b.move.progress()
	n, err := b.ReadCloser.Read(p)
	if errors.Is(err, io.EOF) {
		b.ended = true
		b.move.clear() // committing may take longer than sending
	}
	return n, err
}

// movingWriter is the answer. One goroutine writes at a time.
type movingWriter struct {
	http.ResponseWriter
	move deadline
}

func (w *movingWriter) Write(p []byte) (int, error) {
	w.move.progress()
	return w.ResponseWriter.Write(p)
}

// Unwrap lets http.ResponseController reach the connection.
func (w *movingWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }
