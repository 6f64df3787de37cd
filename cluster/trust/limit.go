package trust

import (
	"net"
	"net/netip"
	"sync"
	"time"
)

// Bounds of attempts to join.
const (
	attempts       = 10          // failed ones of a source within attemptWindow; also at a time
	attemptWindow  = time.Minute // after which a source begins anew
	maxSources     = 1024        // remembered; further ones share one count
	maxJoins       = 32          // at a time, of all sources
	otherSources   = 100         // failed ones within attemptWindow of all that share
	sweepEvery     = time.Second // at most so often old sources are looked for
	ipv6SourceBits = 64          // one customer has as many
)

// limiter bounds the failed attempts of each source. An attempt counts as failed until it is forgiven.
type limiter struct {
	slots chan struct{}

	mu      sync.Mutex // guards all below
	sources map[netip.Prefix]*tally
	others  tally
	swept   time.Time // when sources were last forgotten
}

// tally counts the failed attempts of a window.
type tally struct {
	began time.Time
	count int
}

func newLimiter() *limiter {
	return &limiter{slots: make(chan struct{}, maxJoins), sources: map[netip.Prefix]*tally{}}
}

// begin counts an attempt, and reports whether it may go on. End must follow if it may. first is true for the first attempt that may not in
// a window, so that it is logged once.
func (l *limiter) begin(remote net.Addr, now time.Time) (ok, first bool) {
	select {
	case l.slots <- struct{}{}:
	default:
		return false, false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	t, limit := l.tally(remote, now)
	// A clock that was set back begins a window too.
	if age := now.Sub(t.began); age >= attemptWindow || age < 0 {
		*t = tally{began: now}
	}
	t.count++
	if t.count > limit {
		<-l.slots
		return false, t.count == limit+1
	}
	return true, false
}

// end ends an attempt that began; forgiven, it does not count.
func (l *limiter) end(remote net.Addr, forgiven bool) {
	<-l.slots
	if !forgiven {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if t := l.sources[source(remote)]; t != nil && t.count > 0 {
		t.count--
	}
}

// tally returns the count of a source and its bound. The caller holds mu.
func (l *limiter) tally(remote net.Addr, now time.Time) (*tally, int) {
	from := source(remote)
	if t := l.sources[from]; t != nil {
		return t, attempts
	}
	if age := now.Sub(l.swept); len(l.sources) >= maxSources && (age >= sweepEvery || age < 0) {
		l.swept = now
		for k, t := range l.sources {
			if age := now.Sub(t.began); age >= attemptWindow || age < 0 {
				delete(l.sources, k)
			}
		}
	}
	if len(l.sources) >= maxSources {
		return &l.others, otherSources
	}
	t := &tally{began: now}
	l.sources[from] = t
	return t, attempts
}

// source is what attempts are counted by.
func source(remote net.Addr) netip.Prefix {
	tcp, ok := remote.(*net.TCPAddr)
	if !ok {
		return netip.Prefix{}
	}
	addr := tcp.AddrPort().Addr().Unmap().WithZone("")
	bits := addr.BitLen()
	if addr.Is6() {
		bits = ipv6SourceBits
	}
	p, _ := addr.Prefix(bits)
	return p
}
