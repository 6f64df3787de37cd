package gossip

import (
	"context"
	"net"
	"sync"
	"time"
)

// joiner seeks members at addresses until each has answered.
type joiner struct {
	g    *Group
	wake chan struct{} // capacity 1

	mu      sync.Mutex // guards all below
	known   []string   // in the order in which they came
	pending map[string]*attempt
}

// attempt is what is known of an address that has not answered.
type attempt struct {
	delay time.Duration // until the next one
	next  time.Time
	last  string // what was logged last
}

func newJoiner(g *Group) *joiner {
	return &joiner{g: g, wake: make(chan struct{}, 1), pending: map[string]*attempt{}}
}

// add has addresses sought, at once.
func (j *joiner) add(addresses []string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, a := range addresses {
		if !j.keep(a) {
			j.g.log.Warn("too many addresses of members; one is passed over", "address", a)
			continue
		}
		if j.pending[a] == nil {
			j.pending[a] = &attempt{}
		}
	}
	select {
	case j.wake <- struct{}{}:
	default:
	}
}

// keep remembers an address, if there is room. The caller holds mu.
func (j *joiner) keep(address string) bool {
	for _, k := range j.known {
		if k == address {
			return true
		}
	}
	if len(j.known) >= maxJoin {
		return false
	}
	j.known = append(j.known, address)
	return true
}

// run tries what is due, one address after the other, until the Group closes.
func (j *joiner) run() {
	ctx := j.g.ctx
	for {
		address, wait := j.due(time.Now())
		if address != "" {
			j.try(ctx, address)
			if ctx.Err() != nil {
				return
			}
			continue
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-j.wake:
			timer.Stop()
		case <-timer.C:
		}
	}
}

// due returns an address to try now, or how long to wait.
func (j *joiner) due(now time.Time) (address string, wait time.Duration) {
	j.mu.Lock()
	defer j.mu.Unlock()
	wait = j.g.cfg.Timing.JoinLast
	if len(j.pending) == 0 && j.g.alone() {
		// All who were there are gone: perhaps they come back where they were.
		for _, a := range j.known {
			j.pending[a] = &attempt{delay: wait, next: now.Add(wait)}
		}
		return "", wait
	}
	for _, a := range j.known {
		p := j.pending[a]
		if p == nil {
			continue
		}
		left := p.next.Sub(now)
		if left <= 0 {
			return a, 0
		}
		wait = min(wait, left)
	}
	return "", wait
}

// alone reports whether no other member is alive.
func (g *Group) alone() bool {
	for _, m := range g.View().Members {
		if !m.Self && m.State == Alive {
			return false
		}
	}
	return true
}

// try asks one address. A failure is logged when it is another one than before.
func (j *joiner) try(ctx context.Context, address string) {
	err := j.join(ctx, address)
	if ctx.Err() != nil {
		return
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if err == nil {
		delete(j.pending, address)
		j.g.log.Info("a member of the gossip was found", "address", address)
		return
	}
	p := j.pending[address]
	t := j.g.cfg.Timing
	p.delay = min(max(2*p.delay, t.JoinFirst), t.JoinLast)
	p.next = time.Now().Add(p.delay)
	text := "no member of the gossip answers there yet; it is tried again"
	if wrongKey(err.Error()) {
		text = "the member there does not admit this process: its gossip key is another one; it is of another cluster, or one of the two has missed a change of the key"
	}
	if p.last != text {
		p.last = text
		j.g.log.Warn(text, "address", address, "err", err)
	}
}

// join asks one address, once.
func (j *joiner) join(ctx context.Context, address string) error {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return err
	}
	rctx, cancel := context.WithTimeout(ctx, j.g.cfg.Timing.TCP)
	defer cancel()
	// Here and not in memberlist, which cannot be interrupted.
	ip, err := lookup(rctx, host)
	if err != nil {
		return err
	}
	_, err = j.g.serf.Join([]string{net.JoinHostPort(ip.String(), port)}, true)
	return err
}
