package cluster

import (
	"testing"
	"testing/synctest"
	"time"
)

// Nobody has to find out that the leader is gone if it said so.
func TestALeaderThatIsClosedLetsAnotherLeadAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, list := testCluster(t, "", "", "")
		defer stopAll(list)
		for round := range 3 {
			gone := leading(list)
			begun := time.Now()
			gone.Close()
			if took := time.Since(begun); took >= beatOfCluster {
				t.Errorf("round %d: closing the leader took %v", round, took)
			}
			gone.stop()
			time.Sleep(beatOfCluster / 2) // nobody has lost patience before twice that
			next := leading(list)
			if next == nil {
				t.Fatalf("round %d: nobody leads %v after the leader began to close", round, time.Since(begun))
			}
			createOn(t, next, "after-"+string(rune('a'+round)))
			gone.run(t)
			settled(t)
		}
		for _, p := range list {
			wantBuckets(t, p, 3)
		}
	})
}
