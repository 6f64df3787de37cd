package metadata

import (
	"bytes"
	"context"
	"math"
	"slices"
	"sync"

	"github.com/ostraka/ostraka/internal/errs"
	"github.com/ostraka/ostraka/placement"
)

const (
	maxResolve = 8  // registers resolved at once by one listing
	maxGather  = 32 // drives asked at once by one listing
)

// listing runs one Scan over a cover.
type listing struct {
	c     *Client
	cover placement.Cover
	o     ScanOptions
	live  func(*State) bool
}

func (l *listing) group(key []byte) placement.Group {
	lay := l.cover.Layout()
	return lay.Group(lay.PartitionOf(l.o.Bucket, key))
}

// members returns a function that says whether a drive is one of a key's. Calls about one key follow
// each other, so that it looks the key up once.
func (l *listing) members() func(key []byte, drive uint16) bool {
	var last []byte
	var drives []uint16
	return func(key []byte, drive uint16) bool {
		if drives == nil || !bytes.Equal(key, last) {
			last, drives = key, l.group(key).Drives
		}
		return slices.Contains(drives, drive)
	}
}

// Scan lists registers in the order of their keys, with their chosen states; objects without a
// current version with content are left out, and so are uploads and parts that are gone. Common
// prefixes have a live key under them. Errors are those of Read; Stale if any partition of the layout is in a newer
// epoch, or between two.
func (c *Client) Scan(ctx context.Context, cover placement.Cover, o ScanOptions) (ScanPage, error) {
	if err := c.enter("metadata.Scan"); err != nil {
		return ScanPage{}, err
	}
	defer c.work.Done()
	l := &listing{c: c, cover: cover, o: o, live: func(s *State) bool {
		return s.Current != nil && s.Current.Kind != VersionDeleteMarker
	}}
	return l.page(ctx)
}

// page fills one page. Each drive is asked for its share of it, and asked for more from where it ended if that
// was too little. What undecided candidates are is found out before they count.
func (l *listing) page(ctx context.Context) (page ScanPage, err error) {
	limit := pageLimit(l.o.Limit)
	m := merger{member: l.members(), brief: l.o.Brief}
	need := limit + 1 // with the one that tells that more follows
	if err := l.gather(ctx, &m, l.questions(l.cover.Drives(), nil, need), need); err != nil {
		return ScanPage{}, err
	}
	merged, items := 0, 0 // when the drives were asked last
	for {
		list := m.next(limit - len(page.Items) + 1)
		if err := l.confirm(ctx, list); err != nil {
			return ScanPage{}, err
		}
		page.Items = slices.Grow(page.Items, min(len(list), limit-len(page.Items)))
		for i := range list {
			cand := &list[i]
			if cand.row == nil || !l.live(&cand.row.State) {
				continue
			}
			if len(page.Items) == limit {
				page.Truncated = true
				return page, nil
			}
			page.Items = append(page.Items, item(cand))
			page.After, page.AfterPrefix, page.AfterSub = cand.addr.Key, false, nil
			if cand.prefix != nil {
				page.After, page.AfterPrefix = cand.prefix, true
			} else if l.o.Kind == KindUpload {
				page.AfterSub = slices.Clone(cand.addr.Upload[:])
			}
		}
		switch {
		case m.done():
			return page, nil
		case m.dry():
			need = missing(limit+1-len(page.Items), need, m.merged-merged, len(page.Items)-items)
			merged, items = m.merged, len(page.Items)
			if err := l.goOn(ctx, &m, need); err != nil {
				return ScanPage{}, err
			}
		}
	}
}

// missing estimates how many names a page takes that still lacks some items, when the last need names, as far as they
// were merged, gave it items. The names of what is gone lie between the others, as many as will.
func missing(lacks, need, merged, items int) int {
	if items == 0 {
		return min(max(lacks, 4*need), maxPage)
	}
	return min(max(lacks*merged/items, lacks), maxPage)
}

func item(c *candidate) ScanItem {
	return ScanItem{Address: c.addr, Prefix: c.prefix, State: &c.row.State, Version: c.row.State.Current, Latest: true}
}

// request asks for what lies behind after; nil: for what the listing begins with.
func (l *listing) request(after *ScanEntry) ScanRequest {
	o := &l.o
	m := ScanRequest{Kind: o.Kind, Bucket: o.Bucket, Prefix: o.Prefix, After: o.After, AfterPrefix: o.AfterPrefix,
		AfterSub: o.AfterSub, Delimiter: o.Delimiter, Upload: o.Upload, From: o.From}
	m.BucketEpoch, m.Fenced = o.BucketEpoch, o.Fenced
	if after == nil {
		return m
	}
	m.After, m.AfterPrefix, m.AfterSub, m.From = after.Address.Key, false, nil, after.Address.Part+1
	if after.Prefix != nil {
		m.After, m.AfterPrefix = after.Prefix, true
	} else if o.Kind == KindUpload {
		m.AfterSub = slices.Clone(after.Address.Upload[:])
	}
	return m
}

// overtaken reports whether an epoch, as the reader knows it, is over on a drive that counts in it: then what was
// written since may be missing in what the drive said. group is false for a partition that there is not.
func overtaken(r *ScanReply, drive uint16, group func(partition uint32) (placement.Group, bool)) bool {
	for _, o := range r.Over {
		if g, ok := group(o.Partition); ok && g.Epoch <= o.Epoch && g.Position(drive) >= 0 {
			return true
		}
	}
	return false
}

// shares says of how many partitions of a layout each drive is a member.
type shares struct {
	layout  *placement.Layout
	members map[uint16]int
}

// sharesOf counts once for each layout.
func (c *Client) sharesOf(l *placement.Layout) *shares {
	if s := c.shares.Load(); s != nil && s.layout == l {
		return s
	}
	s := &shares{l, make(map[uint16]int, len(l.Drives()))}
	for p := range l.Partitions() {
		for _, d := range l.Group(p).Drives {
			s.members[d]++
		}
	}
	c.shares.Store(s)
	return s
}

// enough is what to ask a drive for that is expected to have mean of the next most names: so much more that hardly
// one drive of a thousand has more than that, when keys fall into partitions at random.
func enough(mean float64, most int) int {
	return min(int(mean+3*math.Sqrt(mean))+3, most)
}

// question is what one drive is asked.
type question struct {
	drive uint16
	after *ScanEntry // nil: from the beginning of the listing
	limit int
}

// questions asks drives for their shares of the next need names behind after.
func (l *listing) questions(drives []uint16, after *ScanEntry, need int) []question {
	lay := l.cover.Layout()
	if l.o.Kind == KindPart { // all in one partition: nobody else has any
		var list []question
		g := l.group(l.o.Prefix)
		for _, d := range drives {
			if g.Position(d) >= 0 {
				list = append(list, question{d, after, need})
			}
		}
		return list
	}
	shares := l.c.sharesOf(lay)
	list := make([]question, 0, len(drives))
	for _, d := range drives {
		share := float64(shares.members[d]) / float64(lay.Partitions())
		list = append(list, question{d, after, enough(share*float64(need), need)})
	}
	return list
}

// goOn asks the drives that ended too early for the next need names, and with them those that would end before that:
// each from where it ended. What a drive has of those names follows from what it had of the names so far.
func (l *listing) goOn(ctx context.Context, m *merger, need int) error {
	var ask []question
	for i := range m.sources {
		s := &m.sources[i]
		mean := float64(s.used) / float64(max(m.merged, 1)) * float64(need)
		if have := len(s.entries); s.more && (have == 0 || float64(have) < mean) {
			ask = append(ask, question{s.drive, s.end, max(enough(mean, need)-have, 1)})
		}
	}
	return l.gather(ctx, m, ask, need)
}

// gather asks, and others in place of the drives that fail, for their shares of the next need names. The error is Stale
// if the layout is too old, or a partition between two epochs.
func (l *listing) gather(ctx context.Context, m *merger, ask []question, need int) error {
	lay := l.cover.Layout()
	group := func(partition uint32) (placement.Group, bool) {
		if partition >= lay.Partitions() {
			return placement.Group{}, false
		}
		return lay.Group(partition), true
	}
	for len(ask) > 0 {
		replies := l.askAll(ctx, ask)
		if ctx.Err() != nil {
			return errs.Wrap("metadata.Scan", ctx.Err())
		}
		var failed []uint16
		for i, r := range replies {
			switch drive := ask[i].drive; {
			case r == nil:
				failed = append(failed, drive)
				m.drop(drive)
			case overtaken(r, drive, group):
				return errs.E("metadata.Scan", errs.Stale, "the drives serve another epoch of a partition")
			case r.Truncated && len(r.Entries) == 0: // it would be asked for ever
				return errs.E("metadata.Scan", errs.Unavailable, "a drive answered with an empty page")
			default:
				m.add(drive, r)
			}
		}
		if len(failed) == 0 {
			return nil
		}
		next, added, err := l.cover.Extend(l.c.Rand(), failed...)
		if err != nil {
			return err
		}
		l.cover = next
		ask = l.questions(added, m.last, need)
	}
	return nil
}

// askAll returns the answers, nil for drives that failed.
func (l *listing) askAll(ctx context.Context, ask []question) []*ScanReply {
	replies := make([]*ScanReply, len(ask))
	var wg sync.WaitGroup
	slots := make(chan struct{}, maxGather)
	for i := range ask {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			replies[i] = l.ask(ctx, &ask[i])
		})
	}
	wg.Wait()
	return replies
}

func (l *listing) ask(ctx context.Context, q *question) *ScanReply {
	rep, ok := l.c.Replicas.Replica(q.drive)
	if !ok {
		return nil
	}
	call, cancel := context.WithTimeout(ctx, l.c.CallTimeout)
	defer cancel()
	req := l.request(q.after)
	req.Drive, req.Limit = q.drive, q.limit
	r, err := rep.Scan(call, &req)
	if err != nil {
		l.c.Logger.Debug("a drive failed to list", "drive", q.drive, "err", err)
		return nil
	}
	return r
}

// confirm resolves what is undecided, a few at once, and finds a live witness for each prefix.
func (l *listing) confirm(ctx context.Context, list []candidate) error {
	var wg sync.WaitGroup
	slots := make(chan struct{}, maxResolve)
	failures := make([]error, len(list))
	for i := range list {
		cand := &list[i]
		sure := cand.row != nil && cand.chosen
		if sure && (cand.prefix == nil || l.live(&cand.row.State)) {
			continue
		}
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			failures[i] = l.settle(ctx, cand)
		})
	}
	wg.Wait()
	for _, err := range failures {
		if err != nil {
			return err
		}
	}
	return nil
}

// settle makes sure of one candidate; its row is nil when there is nothing live.
func (l *listing) settle(ctx context.Context, cand *candidate) error {
	if cand.row == nil || !cand.chosen {
		if err := l.read(ctx, cand); err != nil {
			return err
		}
	}
	if cand.prefix == nil || cand.row != nil && l.live(&cand.row.State) {
		return nil
	}
	// The witness is dead: the prefix lives if anything behind it does.
	rest := *l
	rest.o.Prefix, rest.o.Delimiter = cand.prefix, nil
	rest.o.After, rest.o.AfterPrefix, rest.o.AfterSub = cand.addr.Key, false, nil
	if l.o.Kind == KindUpload {
		rest.o.AfterSub = cand.addr.Upload[:]
	}
	rest.o.Limit = 1
	page, err := rest.page(ctx)
	if err != nil {
		return err
	}
	cand.row = nil
	if len(page.Items) > 0 {
		cand.addr, cand.row = page.Items[0].Address, &Row{State: *page.Items[0].State}
	}
	return nil
}

// read replaces the row of cand by the chosen one.
func (l *listing) read(ctx context.Context, cand *candidate) error {
	v, err := l.c.Read(ctx, l.group(cand.addr.Key), cand.addr, ReadOptions{BucketEpoch: l.o.BucketEpoch})
	if err != nil {
		return err
	}
	cand.row, cand.chosen = nil, true
	if v.State != nil {
		row := slim(&Row{Ballot: v.Ballot, State: *v.State})
		cand.row = &row
	}
	return nil
}

// ScanVersions lists the versions of objects, delete markers included: keys in order, and the
// versions of a key newest first. Each item has Version, and Latest for the current one.
func (c *Client) ScanVersions(ctx context.Context, cover placement.Cover, o ScanOptions) (ScanPage, error) {
	if err := c.enter("metadata.ScanVersions"); err != nil {
		return ScanPage{}, err
	}
	defer c.work.Done()
	o.Kind = KindObject
	limit := pageLimit(o.Limit)
	l := &listing{c: c, cover: cover, o: o, live: func(s *State) bool { return s.Current != nil }}
	var page ScanPage
	if o.AfterSeq != 0 && len(o.After) > 0 && !o.AfterPrefix {
		// Go on within the key at which the last page ended.
		a := Address{Kind: KindObject, Bucket: o.Bucket, Key: o.After}
		v, err := c.Read(ctx, l.group(a.Key), a, ReadOptions{BucketEpoch: o.BucketEpoch})
		if err != nil {
			return ScanPage{}, err
		}
		if v.State != nil && v.State.Current != nil {
			full, err := l.history(ctx, &a, v.State, o.AfterSeq, limit, &page)
			if err != nil || full {
				return page, err
			}
		}
	}
	for {
		l.o.Limit = limit - len(page.Items)
		if l.o.Limit == 0 {
			// Is there anything behind? One more item tells.
			l.o.Limit = 1
			rest, err := l.page(ctx)
			page.Truncated = len(rest.Items) > 0
			return page, err
		}
		heads, err := l.page(ctx)
		if err != nil {
			return ScanPage{}, err
		}
		for i := range heads.Items {
			it := &heads.Items[i]
			if len(page.Items) == limit {
				page.Truncated = true
				return page, nil
			}
			if it.Prefix != nil {
				page.Items = append(page.Items, *it)
				page.After, page.AfterPrefix, page.AfterSeq = it.Prefix, true, 0
				continue
			}
			full, err := l.history(ctx, &it.Address, it.State, 0, limit, &page)
			if err != nil || full {
				return page, err
			}
		}
		if !heads.Truncated {
			return page, nil
		}
		l.o.After, l.o.AfterPrefix = heads.After, heads.AfterPrefix
	}
}

// history adds the versions of one key with Seq below below (0: all). full says that the page is,
// with more of the key to come.
func (l *listing) history(ctx context.Context, a *Address, s *State, below uint64, limit int, page *ScanPage) (full bool, err error) {
	add := func(v *Version, latest bool) bool {
		if len(page.Items) == limit {
			page.Truncated = true
			return false
		}
		page.Items = append(page.Items, ScanItem{Address: *a, State: s, Version: v, Latest: latest})
		page.After, page.AfterPrefix, page.AfterSeq = a.Key, false, v.Seq
		return true
	}
	if below == 0 || s.Current.Seq < below {
		if !add(s.Current, true) {
			return true, nil
		}
		below = 0
	}
	if s.Older > 0 {
		if below == 0 {
			below = s.Current.Seq // a later state may have Current among its rows
		}
		for more := true; more; {
			var list []Version
			if list, more, err = l.older(ctx, a, s, below, min(limit-len(page.Items)+1, maxPage)); err != nil {
				return false, err
			}
			for i := range list {
				if !add(&list[i], false) {
					return true, nil
				}
				below = list[i].Seq
			}
			more = more && len(list) > 0
		}
	}
	page.AfterSeq = 0 // the key is done
	return false, nil
}

// older reads version rows as of the state s, or of a later chosen one.
func (l *listing) older(ctx context.Context, a *Address, s *State, below uint64, limit int) ([]Version, bool, error) {
	g := l.group(a.Key)
	for range 3 {
		for pos, drive := range g.Drives {
			rep, ok := l.c.Replicas.Replica(drive)
			if !ok {
				continue
			}
			call, cancel := context.WithTimeout(ctx, l.c.CallTimeout)
			m := &VersionsRequest{Header: l.c.header(call, &g, pos, l.o.BucketEpoch), Address: *a, Below: below, Limit: limit}
			r, err := rep.Versions(call, m)
			cancel()
			if err == nil && r.Row != nil && (r.Row.State.ID == s.ID || r.Row.Decided && s.Index < r.Row.State.Index) {
				return r.Versions, r.More, nil
			}
			if ctx.Err() != nil {
				return nil, false, errs.Wrap("metadata.ScanVersions", ctx.Err())
			}
		}
		// The state was replaced by one that is not chosen yet: that resolves it.
		v, err := l.c.Read(ctx, g, *a, ReadOptions{BucketEpoch: l.o.BucketEpoch})
		if err != nil {
			return nil, false, err
		}
		if v.State == nil || v.State.Older == 0 {
			return nil, false, nil
		}
		s = v.State
	}
	return nil, false, errs.E("metadata.ScanVersions", errs.Unavailable, "no drive has the version rows")
}
