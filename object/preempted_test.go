package object

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ostraka/ostraka/internal/errs"
	"github.com/ostraka/ostraka/metadata"
)

// preemption makes a write whose first proposal reaches one drive only, that decides anew on another base,
// and then finds that it was chosen as it was first proposed. Of four drives three decide:
//
//	round 1 of the victim   its Accept reaches drive 0 alone
//	a rival                 reaches drives 1, 2 and 3, its Accept drive 3 alone
//	round 2 of the victim   reaches drives 1, 2 and 3: it decides anew, on top of the rival
//	other writers           reach drives 0, 1 and 2: the first proposal is chosen, and theirs on top of it
//	round 3 of the victim   reaches all, and finds its operation in the ring
type preemption struct {
	t      *testing.T
	s      *stack
	rival  func(*Store)
	others func(*Store)

	kind  metadata.RegisterKind // of the register whose rounds are disturbed
	clock atomic.Int64          // of all gateways: ticks with every look
	order []uint16              // drives, by position
	taken chan struct{}         // closed once drive 0 has taken the first Accept
	below sync.Once             // runs rival
	above sync.Once             // runs others

	mu     sync.Mutex // guards what follows
	rounds []metadata.Ballot
	bases  []metadata.Ballot // on which the rounds decided
}

// link is the way of a gateway to a drive: it delivers, or answers itself.
type link struct {
	read    func(pos int) error
	prepare func(pos int, m *metadata.PrepareRequest) error
	accept  func(pos int, m *metadata.AcceptRequest, deliver func() (*metadata.AcceptReply, error)) (*metadata.AcceptReply, error)
}

// linked are the drives at the ends of links.
type linked struct {
	replicas
	p *preemption
	l link
}

func (r linked) Replica(num uint16) (metadata.Replica, bool) {
	d, ok := r.replicas.Replica(num)
	return linkedDrive{d, slices.Index(r.p.order, num), r.l}, ok
}

type linkedDrive struct {
	metadata.Replica
	pos int
	l   link
}

func (d linkedDrive) Read(ctx context.Context, m *metadata.ReadRequest) (*metadata.ReadReply, error) {
	if err := d.l.read(d.pos); err != nil {
		return nil, err
	}
	return d.Replica.Read(ctx, m)
}

func (d linkedDrive) Prepare(ctx context.Context, m *metadata.PrepareRequest) (*metadata.PrepareReply, error) {
	if err := d.l.prepare(d.pos, m); err != nil {
		return nil, err
	}
	return d.Replica.Prepare(ctx, m)
}

func (d linkedDrive) Accept(ctx context.Context, m *metadata.AcceptRequest) (*metadata.AcceptReply, error) {
	return d.l.accept(d.pos, m, func() (*metadata.AcceptReply, error) { return d.Replica.Accept(ctx, m) })
}

var errCut = errs.E("test", errs.Drive, "the way is cut")

// gateway calls f with a gateway of its own.
func (p *preemption) gateway(l link, f func(*Store)) {
	now := func() time.Time { return time.Unix(0, p.clock.Add(int64(time.Millisecond))) }
	meta := metadata.NewClient(metadata.ClientConfig{Replicas: linked{replicas{p.s, false}, p, l}, Now: now, SettleAfter: 200 * time.Millisecond})
	g := p.s.gateway(meta, stackOptions{tune: func(c *Config) { c.Now = now }})
	f(g)
	if err := errors.Join(g.Close(context.Background()), meta.Close(context.Background())); err != nil {
		p.t.Error(err)
	}
}

// reaching is the link of a gateway that does not reach one position. Its Accepts to positions below from
// are lost, once another has taken one: who has lost the quorum does not wait for the rest.
func reaching(without, from int) link {
	last := make(chan struct{})
	var once sync.Once
	reach := func(pos int) error {
		if pos == without {
			return errCut
		}
		return nil
	}
	return link{
		read:    reach,
		prepare: func(pos int, _ *metadata.PrepareRequest) error { return reach(pos) },
		accept: func(pos int, _ *metadata.AcceptRequest, deliver func() (*metadata.AcceptReply, error)) (*metadata.AcceptReply, error) {
			switch {
			case pos < from:
				<-last
				return nil, errCut
			case pos == without:
				return nil, errCut
			}
			defer once.Do(func() { close(last) })
			return deliver()
		},
	}
}

// run calls victim, which writes to key once. upload is the one whose register is disturbed, or "".
func (p *preemption) run(bucket, key, upload string, victim func(*Store)) {
	p.t.Helper()
	b, ok := p.s.control.Bucket(bucket)
	if !ok {
		p.t.Fatal("no such bucket")
	}
	at := placeIn(p.s.control.Layout(), b, []byte(key))
	g, a := at.group, at.object()
	if id, ok := parseUploadID(upload); ok {
		a = at.upload(id)
	}
	// Drive 0 may not be behind, or it would refuse the first Accept.
	if err := p.s.meta.Resync(context.Background(), g, a, nil); err != nil {
		p.t.Fatal(err)
	}
	p.kind = a.Kind
	if g.Quorum.N != 4 || g.Quorum.W != 3 {
		p.t.Fatalf("the quorum is %+v, the test is made for 3 of 4", g.Quorum)
	}
	p.order, p.taken = g.Drives, make(chan struct{})
	p.clock.Store(time.Now().UnixNano())
	p.gateway(link{func(int) error { return nil }, p.prepare, p.accept}, victim)
	if len(p.bases) < 3 || p.bases[0] == p.bases[1] {
		p.t.Fatalf("the victim decided on %v: nobody came between", p.bases)
	}
}

// round returns the number of a round of the victim, from 1; 0 if it is of another register.
func (p *preemption) round(kind metadata.RegisterKind, b metadata.Ballot) int {
	if kind != p.kind {
		return 0
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if i := slices.Index(p.rounds, b); i >= 0 {
		return i + 1
	}
	p.rounds = append(p.rounds, b)
	return len(p.rounds)
}

// note keeps on which state a round decided.
func (p *preemption) note(round int, m *metadata.AcceptRequest) {
	p.mu.Lock()
	defer p.mu.Unlock()
	base := m.State.Prev
	if m.State.ID != m.Ballot {
		base = m.State.ID // to leave it as it is
	}
	if len(p.bases)+1 == round {
		p.bases = append(p.bases, base)
	}
}

func (p *preemption) prepare(pos int, m *metadata.PrepareRequest) error {
	if p.round(m.Address.Kind, m.Ballot) == 2 && pos == 0 {
		return errCut
	}
	return nil
}

func (p *preemption) accept(pos int, m *metadata.AcceptRequest, deliver func() (*metadata.AcceptReply, error)) (*metadata.AcceptReply, error) {
	round := p.round(m.Address.Kind, m.Ballot)
	p.note(round, m)
	switch round {
	case 1:
		if pos == 0 {
			defer close(p.taken)
			r, err := deliver()
			if err != nil || !r.Accepted {
				p.t.Errorf("drive 0 did not take the first Accept: %+v, %v", r, err)
			}
			return r, err
		}
		<-p.taken
		p.below.Do(func() { p.gateway(reaching(0, 3), p.rival) })
	case 2:
		p.above.Do(func() { p.gateway(reaching(3, 0), p.others) })
	}
	return deliver()
}

func putWith(t *testing.T, g *Store, key string, b []byte) Info {
	t.Helper()
	info, err := g.Put(context.Background(), "bkt", key, bytes.NewReader(b), PutOptions{Size: int64(len(b))})
	if err != nil {
		t.Errorf("put: %v", err)
	}
	return info
}

func TestAWriteThatWasChosenAsItWasFirstProposedAnswersWithThatVersion(t *testing.T) {
	ctx := context.Background()
	const key = "k"
	type answer struct {
		id   string
		time time.Time // zero: the answer has none
		etag string
	}
	type ask func(t *testing.T, g *Store) (answer, error)
	put := func(size int) ask {
		return func(_ *testing.T, g *Store) (answer, error) {
			b := body(7, size)
			i, err := g.Put(ctx, "bkt", key, bytes.NewReader(b), PutOptions{Size: int64(size)})
			return answer{i.VersionID, i.ModTime, i.ETag}, err
		}
	}
	remove := func(_ *testing.T, g *Store) (answer, error) {
		r, err := g.Delete(ctx, "bkt", key, DeleteOptions{})
		return answer{id: r.VersionID}, err
	}
	copied := func(_ *testing.T, g *Store) (answer, error) {
		r, err := g.Copy(ctx, "bkt", "source", "bkt", key, CopyOptions{})
		return answer{r.Info.VersionID, r.Info.ModTime, r.Info.ETag}, err
	}
	tag := func(_ *testing.T, g *Store) (answer, error) {
		i, err := g.Modify(ctx, "bkt", key, nil, func(v *metadata.Version) error { v.Tags = tagged("x"); return nil })
		return answer{i.VersionID, i.ModTime, i.ETag}, err
	}
	complete := func(t *testing.T, g *Store) (answer, error) {
		up, err := g.CreateUpload(ctx, "bkt", key, UploadOptions{})
		if err != nil {
			t.Fatal(err)
		}
		b := body(8, 9000)
		part, err := g.PutPart(ctx, "bkt", key, up.UploadID, 1, bytes.NewReader(b), PartOptions{Size: int64(len(b))})
		if err != nil {
			t.Fatal(err)
		}
		i, err := g.CompleteUpload(ctx, "bkt", key, up.UploadID, []CompletedPart{{Number: 1, ETag: part.ETag}}, CompleteOptions{})
		return answer{i.VersionID, i.ModTime, i.ETag}, err
	}
	for _, c := range []struct {
		name string
		ask  ask
		kind metadata.VersionKind
		gone bool // before the answer the version is deleted by its id
	}{
		{"a small body", put(100), metadata.VersionObject, false},
		{"a body of three chunks", put(600 << 10), metadata.VersionObject, false},
		{"a small body that is gone again", put(100), metadata.VersionObject, true},
		{"a delete marker", remove, metadata.VersionDeleteMarker, false},
		{"a delete marker that is gone again", remove, metadata.VersionDeleteMarker, true},
		{"a copy", copied, metadata.VersionObject, false},
		{"a completed upload", complete, metadata.VersionObject, false},
		{"a completed upload that is gone again", complete, metadata.VersionObject, true},
		{"tags of the current version", tag, metadata.VersionObject, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newStack(t, stackOptions{})
			s.bucketFor("bkt", Enabled)
			putWith(t, s.Store, "source", body(1, 200))
			putWith(t, s.Store, key, body(2, 300))
			before := newestVersions(t, s.Store, key)
			var want Info // the victim's, as the others met it
			p := &preemption{t: t, s: s,
				rival: func(g *Store) {
					b := body(3, 50)
					_, err := g.Put(ctx, "bkt", key, bytes.NewReader(b), PutOptions{Size: int64(len(b))})
					if !errs.Is(err, errs.Unknown) {
						t.Errorf("the rival: %v", err)
					}
				},
				others: func(g *Store) {
					putWith(t, g, key, body(10, 60))
					want = newestVersions(t, g, key)[1] // what the put met
					putWith(t, g, key, body(11, 60))
					putWith(t, g, key, body(12, 60))
					if c.gone {
						if _, err := g.Delete(ctx, "bkt", key, DeleteOptions{VersionID: &want.VersionID}); err != nil {
							t.Errorf("delete: %v", err)
						}
					}
				}}
			p.run("bkt", key, "", func(g *Store) {
				got, err := c.ask(t, g)
				if err != nil {
					t.Fatal(err)
				}
				if got.id != want.VersionID || got.etag != want.ETag || !got.time.IsZero() && !got.time.Equal(want.ModTime) {
					t.Errorf("the answer is %+v, the version %s %v %s", got, want.VersionID, want.ModTime, want.ETag)
				}
			})
			after := newestVersions(t, s.Store, key)
			added := 4
			if c.gone || c.name == "tags of the current version" {
				added = 3
			}
			if len(after) != len(before)+added {
				t.Errorf("%d versions, there were %d before", len(after), len(before))
			}
			stands := slices.ContainsFunc(after, func(v Info) bool {
				return v.VersionID == want.VersionID && v.DeleteMarker == (c.kind == metadata.VersionDeleteMarker)
			})
			if stands == c.gone {
				t.Errorf("version %s stands: %v", want.VersionID, stands)
			}
		})
	}
}

// newestVersions lists the versions of a key, newest first.
func newestVersions(t *testing.T, s *Store, key string) (list []Info) {
	t.Helper()
	r, err := s.ListVersions(context.Background(), "bkt", ListVersionsOptions{Prefix: key, Limit: 100})
	if err != nil {
		t.Errorf("list: %v", err)
	}
	for _, v := range r.Versions {
		if v.Key == key {
			list = append(list, v)
		}
	}
	return list
}

func TestACompletionThatWasBegunAndAbortedBetweenItsRoundsSaysThatThereIsNoUpload(t *testing.T) {
	ctx := context.Background()
	const key = "k"
	s := newStack(t, stackOptions{})
	s.bucketFor("bkt", Enabled)
	up, err := s.CreateUpload(ctx, "bkt", key, UploadOptions{})
	if err != nil {
		t.Fatal(err)
	}
	b := body(8, 9000)
	part, err := s.PutPart(ctx, "bkt", key, up.UploadID, 1, bytes.NewReader(b), PartOptions{Size: int64(len(b))})
	if err != nil {
		t.Fatal(err)
	}
	p := &preemption{t: t, s: s,
		rival: func(g *Store) {
			if err := g.AbortUpload(ctx, "bkt", key, up.UploadID); !errs.Is(err, errs.Unknown) {
				t.Errorf("the rival: %v", err)
			}
		},
		others: func(g *Store) {
			err := g.AbortUpload(ctx, "bkt", key, up.UploadID)
			if errors.Is(err, ErrNoSuchUpload) {
				// It read the upload as open, and met the completion in its round, which is chosen by that.
				err = g.AbortUpload(ctx, "bkt", key, up.UploadID)
			}
			if err != nil {
				t.Errorf("abort: %v", err)
			}
		}}
	p.run("bkt", key, up.UploadID, func(g *Store) {
		_, err := g.CompleteUpload(ctx, "bkt", key, up.UploadID, []CompletedPart{{Number: 1, ETag: part.ETag}}, CompleteOptions{})
		if !errors.Is(err, ErrNoSuchUpload) {
			t.Errorf("complete: %v", err)
		}
	})
	if list := newestVersions(t, s.Store, key); len(list) != 0 {
		t.Errorf("%d versions of an upload that was aborted", len(list))
	}
}
