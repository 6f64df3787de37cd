package metadata

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ostraka/ostraka/internal/errs"
	"github.com/ostraka/ostraka/placement"
)

const (
	maxSettling = 4096 // operations whose stragglers are waited for in the background
	maxQueued   = 8192 // decisions waiting for one drive
	flushAt     = 256  // decisions sent together
)

// Client drives operations on registers over the drives of their partitions. It is safe for
// concurrent use. Its goroutines (calls to drives, settling, sending of decisions) end at the latest
// one SealTimeout after Close.
type Client struct {
	ClientConfig

	work    sync.WaitGroup
	closing chan struct{} // closed by Close
	slots   chan struct{} // one for each operation that settles in the background
	keys    keyLocks
	shares  atomic.Pointer[shares] // of the layout that was listed last

	mu       sync.RWMutex // guards what follows
	closed   bool
	deciders map[uint16]*decider
}

// NewClient returns a Client. It cannot fail.
func NewClient(c ClientConfig) *Client {
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Rand == nil {
		c.Rand = rand.Uint64
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	def := func(d *time.Duration, v time.Duration) {
		if *d <= 0 {
			*d = v
		}
	}
	def(&c.HedgeAfter, 20*time.Millisecond)
	def(&c.CallTimeout, 10*time.Second)
	def(&c.SealTimeout, 60*time.Second)
	def(&c.SettleAfter, 2*time.Second)
	def(&c.FlushAfter, 4*time.Millisecond)
	if c.Attempts <= 0 {
		c.Attempts = 32
	}
	return &Client{ClientConfig: c, closing: make(chan struct{}), slots: make(chan struct{}, maxSettling),
		keys: keyLocks{held: map[string]*keyLock{}}, deciders: map[uint16]*decider{}}
}

// Close refuses new operations, sends the decisions that wait, and returns when nothing of the client
// runs any more or ctx has ended. What it could not send, the drives' unsettled marks remember.
func (c *Client) Close(ctx context.Context) error {
	c.mu.Lock()
	if !c.closed {
		c.closed = true
		close(c.closing)
	}
	c.mu.Unlock()
	done := make(chan struct{})
	go func() { // ends with the last call, which has a timeout
		c.work.Wait()
		close(done)
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return errs.Wrap("metadata.Close", ctx.Err())
	}
}

// enter begins an operation, which ends with c.work.Done. Everything that the client does is part
// of one, so Close waits for all of it.
func (c *Client) enter(op string) error {
	c.mu.RLock()
	defer c.mu.RUnlock()
	if c.closed {
		return errs.E(op, errs.Unavailable, "the client is closed")
	}
	c.work.Add(1)
	return nil
}

// header addresses the drive at pos.
func (c *Client) header(ctx context.Context, g *placement.Group, pos int, bucketEpoch uint64) Header {
	h := Header{Drive: g.Drives[pos], Partition: g.Partition, Epoch: g.Epoch, BucketEpoch: bucketEpoch}
	if d, ok := ctx.Deadline(); ok {
		h.Deadline = d.UnixNano()
	}
	return h
}

// ballot returns a ballot above seen that nobody else uses.
func (c *Client) ballot(seen Ballot) Ballot {
	now := max(c.Now().UnixMicro(), 1)
	return Ballot{Counter: max(uint64(now), seen.Counter+1), Proposer: c.Rand()}
}

var errGone = errs.E("metadata.Client", errs.Drive, "the drive is gone")

// keyLocks queue the writers of one key in this process, which would only preempt each other.
type keyLocks struct {
	mu   sync.Mutex // guards held and the counts in it
	held map[string]*keyLock
}

type keyLock struct {
	turn chan struct{} // holds one element while the lock is held
	refs int           // holder and waiters
}

// lock waits for the key's turn. The caller calls unlock once.
func (k *keyLocks) lock(ctx context.Context, name string) (unlock func(), err error) {
	k.mu.Lock()
	l := k.held[name]
	if l == nil {
		l = &keyLock{turn: make(chan struct{}, 1)}
		k.held[name] = l
	}
	l.refs++
	k.mu.Unlock()
	leave := func() {
		k.mu.Lock()
		if l.refs--; l.refs == 0 {
			delete(k.held, name)
		}
		k.mu.Unlock()
	}
	select {
	case l.turn <- struct{}{}:
		return func() { <-l.turn; leave() }, nil
	default:
	}
	select {
	case l.turn <- struct{}{}:
		return func() { <-l.turn; leave() }, nil
	case <-ctx.Done():
		leave()
		return nil, errs.Wrap("metadata.Client", ctx.Err())
	}
}

// decider sends the decisions for one drive, in batches, one at a time.
type decider struct {
	c     *Client
	drive uint16
	full  chan struct{} // wakes the sender when a batch is complete

	mu      sync.Mutex // guards what follows
	queue   []*pending
	running bool
}

// pending is a decision that waits; once sent it is not changed any more.
type pending struct {
	d    Decision
	sent bool
}

func (c *Client) decider(drive uint16) *decider {
	c.mu.RLock()
	d := c.deciders[drive]
	c.mu.RUnlock()
	if d != nil {
		return d
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if d = c.deciders[drive]; d == nil {
		d = &decider{c: c, drive: drive, full: make(chan struct{}, 1)}
		c.deciders[drive] = d
	}
	return d
}

// add queues m. It never waits: a decision too many is dropped, as the unsettled mark on the drive
// stays until somebody settles the register.
func (d *decider) add(m Decision) *pending {
	p := &pending{d: m}
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.queue) >= maxQueued {
		p.sent = true
		return p
	}
	d.queue = append(d.queue, p)
	if len(d.queue) == flushAt {
		select {
		case d.full <- struct{}{}:
		default:
		}
	}
	if !d.running {
		d.running = true
		d.c.work.Go(d.run)
	}
	return p
}

// settle completes a decision: in the queue if it still waits there, else with another one. Who is
// missing becomes a repair row, so the unsettled mark can go in any case, if settled says that all who
// may lack something are known.
func (d *decider) settle(p *pending, missing []uint8, settled bool) {
	if !settled && len(missing) == 0 {
		return
	}
	d.mu.Lock()
	p.d.Missing, p.d.Settled = missing, settled
	again := p.sent
	m := p.d
	d.mu.Unlock()
	if again {
		d.add(m)
	}
}

func (d *decider) run() {
	timer := time.NewTimer(d.c.FlushAfter)
	defer timer.Stop()
	for {
		select {
		case <-timer.C:
		case <-d.full:
		case <-d.c.closing:
		}
		d.mu.Lock()
		batch := d.queue
		d.queue = nil
		for _, p := range batch {
			p.sent = true
		}
		list := make([]Decision, len(batch))
		for i, p := range batch {
			list[i] = p.d
		}
		if len(list) == 0 {
			d.running = false
			d.mu.Unlock()
			return
		}
		d.mu.Unlock()
		d.send(list)
		timer.Reset(d.c.FlushAfter)
	}
}

func (d *decider) send(list []Decision) {
	rep, ok := d.c.Replicas.Replica(d.drive)
	if !ok {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), d.c.CallTimeout)
	defer cancel()
	for len(list) > 0 {
		n := min(len(list), flushAt)
		if err := rep.Decide(ctx, list[:n]); err != nil {
			d.c.Logger.Debug("decisions were not delivered", "drive", d.drive, "count", len(list), "err", err)
			return
		}
		list = list[n:]
	}
}
