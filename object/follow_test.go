package object

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// waitOut pauses until the patience of a new step is over, and returns how long that was. Each try takes some time, too.
func waitOut(t *testing.T, shared *sharedPatience, try time.Duration) time.Duration {
	begun := time.Now()
	w := patience{shared: shared}
	for w.pause(t.Context()) {
		time.Sleep(try) // of the bubble
	}
	return time.Since(begun)
}

func TestPatienceIsTimeWaitedNotTimePassed(t *testing.T) {
	const try = 3 * time.Millisecond
	long := func(d time.Duration) bool { return d >= maxPatience && d <= maxPatience+maxPause }

	t.Run("a step alone", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			if d := waitOut(t, nil, try); !long(d) {
				t.Errorf("it was patient for %v, want %v", d, maxPatience)
			}
		})
	})
	t.Run("a step that meets a wedged partition long after another waited a moment", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			var all sharedPatience
			first := patience{shared: &all}
			first.pause(t.Context())
			time.Sleep(3 * maxPatience)
			if d := waitOut(t, &all, try); !long(d + time.Millisecond) {
				t.Errorf("it was patient for %v, want %v less the first pause", d, maxPatience)
			}
			if d := waitOut(t, &all, try); d != 0 {
				t.Errorf("all of it was spent, and the next step was patient for %v", d)
			}
		})
	})
	t.Run("steps that wait at the same time", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			var all sharedPatience
			var wg sync.WaitGroup
			for i := range 32 {
				wg.Go(func() {
					time.Sleep(time.Duration(i) * time.Millisecond)
					if d := waitOut(t, &all, try); !long(d + 32*time.Millisecond) {
						t.Errorf("step %d was patient for %v, want %v", i, d, maxPatience)
					}
				})
			}
			wg.Wait()
		})
	})
	t.Run("steps one after the other", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			var all sharedPatience
			begun, n := time.Now(), 0
			for {
				w := patience{shared: &all}
				if !w.pause(t.Context()) {
					break
				}
				n++
			}
			if d := time.Since(begun); d != maxPatience || n != int(maxPatience/time.Millisecond) {
				t.Errorf("%d steps that waited a millisecond each waited %v, want %v", n, d, maxPatience)
			}
		})
	})
	t.Run("a request that is over", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			var w patience
			if begun := time.Now(); w.pause(ctx) || time.Since(begun) != 0 {
				t.Errorf("it paused for %v", time.Since(begun))
			}
		})
	})
}
