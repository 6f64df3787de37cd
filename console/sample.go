package console

import (
	"context"
	"sync"
	"time"

	"github.com/ostraka/ostraka/disk"
)

// sampleWait is the longest that a status, a probe or a scrape waits for a drive.
const sampleWait = 2 * time.Second

// Sample is what a drive last said of itself.
type Sample struct {
	Info  disk.DriveInfo
	Stale bool // it did not answer in time this time; Info is from before
}

// Sampler asks drives for their condition. A drive that hangs costs one goroutine, however often
// it is asked, and its last answer is reported as stale.
type Sampler struct {
	open func() map[uint16]func() disk.DriveInfo

	mu   sync.Mutex // guards all below
	last map[uint16]disk.DriveInfo
	busy map[uint16]chan struct{} // closed when the question that is under way is answered
}

// NewSampler makes a Sampler of the open drives: a function that tells the condition of each. The
// functions may block.
func NewSampler(open func() map[uint16]func() disk.DriveInfo) *Sampler {
	return &Sampler{open: open, last: map[uint16]disk.DriveInfo{}, busy: map[uint16]chan struct{}{}}
}

// Sample asks all open drives at once, and returns after sampleWait at the latest.
func (s *Sampler) Sample(ctx context.Context) map[uint16]Sample {
	ctx, cancel := context.WithTimeout(ctx, sampleWait)
	defer cancel()
	waits := map[uint16]chan struct{}{}
	s.mu.Lock()
	for num, info := range s.open() {
		done, running := s.busy[num]
		if !running {
			done = make(chan struct{})
			s.busy[num] = done
			// Ends with the drive's answer; closing the drive ends that.
			go func() {
				i := info()
				s.mu.Lock()
				s.last[num] = i
				delete(s.busy, num)
				s.mu.Unlock()
				close(done)
			}()
		}
		waits[num] = done
	}
	s.mu.Unlock()
	out := map[uint16]Sample{}
	for num, done := range waits {
		stale := false
		select {
		case <-done:
		case <-ctx.Done():
			select {
			case <-done:
			default:
				stale = true
			}
		}
		s.mu.Lock()
		if i, ok := s.last[num]; ok {
			out[num] = Sample{Info: i, Stale: stale}
		}
		s.mu.Unlock()
	}
	return out
}
