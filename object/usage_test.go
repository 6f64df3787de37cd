package object

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"
)

func TestUsageCountsWhatIsThere(t *testing.T) {
	ctx := context.Background()
	now := time.Unix(1e9, 0)
	s := newStack(t, stackOptions{tune: func(c *Config) { c.Now = func() time.Time { return now } }})
	s.bucketFor("empty", Unversioned)
	s.bucketFor("plain", Unversioned)
	s.bucketFor("versions", Enabled)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	put := func(bucket, key string, n int) string {
		t.Helper()
		info, err := s.put(bucket, key, body(1, n), PutOptions{})
		must(err)
		return info.VersionID
	}
	const many = 57
	s.usage.page = 25
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			for i := w; i < many; i += 8 {
				put("plain", fmt.Sprintf("k%05d", i), 10)
			}
		})
	}
	wg.Wait()
	put("plain", "k00000", 7000)
	put("versions", "a", 100)
	old := put("versions", "a", 200)
	put("versions", "a", 5000)
	put("versions", "b", 30)
	_, err := s.Delete(ctx, "versions", "b", DeleteOptions{})
	must(err)
	_, err = s.Delete(ctx, "versions", "a", DeleteOptions{VersionID: &old})
	must(err)
	want := []BucketUsage{{"empty", 0, 0, 0}, {"plain", many, many, (many-1)*10 + 7000}, {"versions", 1, 3, 5130}}
	u, err := s.Usage(ctx, false)
	must(err)
	if !slices.Equal(u.Buckets, want) || !u.At.Equal(now) {
		t.Fatalf("got %+v at %v, want %+v", u.Buckets, u.At, want)
	}
	// What was counted is said again for a while, unless somebody asks for more.
	put("empty", "x", 1)
	now = now.Add(usageKeeps / 2)
	if u, err = s.Usage(ctx, false); err != nil || !slices.Equal(u.Buckets, want) {
		t.Errorf("after half the time: %+v, %v", u.Buckets, err)
	}
	want[0] = BucketUsage{"empty", 1, 1, 1}
	if u, err = s.Usage(ctx, true); err != nil || !slices.Equal(u.Buckets, want) || !u.At.Equal(now) {
		t.Errorf("a fresh count: %+v at %v, %v", u.Buckets, u.At, err)
	}
	put("empty", "y", 1)
	now = now.Add(usageKeeps)
	want[0] = BucketUsage{"empty", 2, 2, 2}
	if u, err = s.Usage(ctx, false); err != nil || !slices.Equal(u.Buckets, want) {
		t.Errorf("after all the time: %+v, %v", u.Buckets, err)
	}
	stop, cancel := context.WithCancel(ctx)
	cancel()
	now = now.Add(time.Second)
	if _, err := s.Usage(stop, true); err == nil {
		t.Error("a count of somebody who went away succeeded")
	}
}
