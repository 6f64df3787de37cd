package metadata

import (
	"bytes"
	"cmp"
	"context"
	"slices"
	"sync"

	"github.com/ostraka/ostraka/internal/errs"
	"github.com/ostraka/ostraka/placement"
)

const (
	maxResolve = 8  // registers resolved at once by one listing
	maxGather  = 32 // drives asked at once by one listing
)

// scanSource answers for one drive of a listing.
type scanSource struct {
	drive uint16
	reply *ScanReply
}

// candidate is one name of a merged listing: a register, or a common prefix with its smallest
// witness.
type candidate struct {
	addr   Address
	prefix []byte
	row    *Row // the newest row that was seen of addr
	// chosen: row is known to be chosen, or no member that was asked has one newer.
	chosen bool
}

// name orders the entries of a page: common prefixes stand among the keys as themselves.
func (e *ScanEntry) name() []byte {
	if e.Prefix != nil {
		return e.Prefix
	}
	return e.Address.Key
}

func compareEntries(a, b *ScanEntry) int {
	if c := bytes.Compare(a.name(), b.name()); c != 0 {
		return c
	}
	if c := bytes.Compare(a.Address.Upload[:], b.Address.Upload[:]); c != 0 {
		return c
	}
	return cmp.Compare(a.Address.Part, b.Address.Part)
}

// mergeScan merges the pages of several drives. member says whether a drive's row of a key counts.
// The result ends at the smallest last name of any truncated page: behind it, that drive may have
// more. complete is false when the result ends there.
func mergeScan(sources []scanSource, member func(key []byte, drive uint16) bool) (list []candidate, last *ScanEntry, complete bool) {
	return mergeRows(sources, member, false)
}

// mergeRows is mergeScan, with brief rows if they are decoded here.
func mergeRows(sources []scanSource, member func(key []byte, drive uint16) bool, brief bool) (list []candidate, last *ScanEntry, complete bool) {
	var bound *ScanEntry
	for i := range sources {
		r := sources[i].reply
		if !r.Truncated {
			continue
		}
		if len(r.Entries) == 0 { // a drive that gave nothing and has more is of no use
			return nil, nil, false
		}
		if e := &r.Entries[len(r.Entries)-1]; bound == nil || compareEntries(e, bound) < 0 {
			bound = e
		}
	}
	at := make([]int, len(sources))
	most := 0
	for i := range sources {
		most = max(most, len(sources[i].reply.Entries))
	}
	list = make([]candidate, 0, most)
	rows := make([]Row, 0, most) // of the candidates, as far as they do not come decoded
	voters := make([]*ScanEntry, 0, len(sources))
	for {
		var least *ScanEntry
		for i := range sources {
			if es := sources[i].reply.Entries; at[i] < len(es) {
				if e := &es[at[i]]; least == nil || before(e, least) {
					least = e
				}
			}
		}
		if least == nil || bound != nil && place(least, bound) > 0 {
			return list, last, bound == nil
		}
		last = least
		c := candidate{addr: least.Address, prefix: least.Prefix}
		voters = voters[:0]
		var best *ScanEntry
		var highest, id Ballot
		for i := range sources {
			es := sources[i].reply.Entries
			if at[i] >= len(es) || &es[at[i]] != least && place(&es[at[i]], least) != 0 {
				continue
			}
			e := &es[at[i]]
			at[i]++
			// Of a prefix, only the rows of the smallest witness count; a drive with a larger one
			// has no row of the smallest.
			if e != least && !sameAddress(&e.Address, &least.Address) || !member(e.Address.Key, sources[i].drive) {
				continue
			}
			voters = append(voters, e)
			if ballot, state, _ := e.heading(); best == nil || highest.Less(ballot) {
				best, highest, id = e, ballot, state
			}
		}
		if best != nil {
			for _, e := range voters {
				_, state, decided := e.heading()
				c.chosen = c.chosen || decided && state == id
			}
			if len(rows) == cap(rows) {
				rows = make([]Row, 0, most) // those in use stay where they are
			}
			rows = append(rows, Row{})
			if row, err := best.row(&rows[len(rows)-1], brief); err == nil {
				c.row = row
			} else {
				// Whoever makes sure of the candidate asks all drives, and knows what to make of it.
				rows[len(rows)-1] = Row{}
				c.row, c.chosen = &rows[len(rows)-1], false
			}
		}
		if c.row != nil || c.prefix != nil {
			list = append(list, c)
		}
	}
}

// place compares the names only: two entries of one common prefix are at one place.
func place(a, b *ScanEntry) int {
	if a.Prefix != nil && b.Prefix != nil {
		return bytes.Compare(a.Prefix, b.Prefix)
	}
	return compareEntries(a, b)
}

// before orders by place, and witnesses of one prefix by key.
func before(a, b *ScanEntry) bool {
	if c := place(a, b); c != 0 || a.Prefix == nil && b.Prefix == nil {
		return c < 0 // keys that are at one place are the same
	}
	return cmp.Or(bytes.Compare(a.Address.Key, b.Address.Key), compareEntries(a, b)) < 0
}

func sameAddress(a, b *Address) bool {
	return a.Kind == b.Kind && a.Bucket == b.Bucket && a.Upload == b.Upload && a.Part == b.Part && bytes.Equal(a.Key, b.Key)
}

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

// page fills one page, asking the drives again while it is short.
func (l *listing) page(ctx context.Context) (page ScanPage, err error) {
	limit := pageLimit(l.o.Limit)
	m := l.request()
	for {
		m.Limit = limit - len(page.Items) + 1
		sources, err := l.gather(ctx, &m)
		if err != nil {
			return ScanPage{}, err
		}
		list, last, complete := mergeRows(sources, l.members(), l.o.Brief)
		if !complete && last == nil {
			return ScanPage{}, errs.E("metadata.Scan", errs.Unavailable, "a drive answered with an empty page")
		}
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
		if complete {
			return page, nil
		}
		m.After, m.AfterPrefix, m.AfterSub, m.From = last.Address.Key, false, nil, last.Address.Part+1
		if last.Prefix != nil {
			m.After, m.AfterPrefix = last.Prefix, true
		} else if l.o.Kind == KindUpload {
			m.AfterSub = slices.Clone(last.Address.Upload[:])
		}
	}
}

func item(c *candidate) ScanItem {
	return ScanItem{Address: c.addr, Prefix: c.prefix, State: &c.row.State, Version: c.row.State.Current, Latest: true}
}

func (l *listing) request() ScanRequest {
	o := &l.o
	m := ScanRequest{Kind: o.Kind, Bucket: o.Bucket, Prefix: o.Prefix, After: o.After, AfterPrefix: o.AfterPrefix,
		AfterSub: o.AfterSub, Delimiter: o.Delimiter, Upload: o.Upload, From: o.From}
	m.BucketEpoch, m.Fenced = o.BucketEpoch, o.Fenced
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

// gather asks the drives of the cover, and others in place of those that fail. The error is Stale if the
// layout is too old, or a partition between two epochs.
func (l *listing) gather(ctx context.Context, m *ScanRequest) (sources []scanSource, err error) {
	ask, lay := l.cover.Drives(), l.cover.Layout()
	group := func(partition uint32) (placement.Group, bool) {
		if partition >= lay.Partitions() {
			return placement.Group{}, false
		}
		return lay.Group(partition), true
	}
	for {
		replies := make([]*ScanReply, len(ask))
		var wg sync.WaitGroup
		slots := make(chan struct{}, maxGather)
		for i, drive := range ask {
			slots <- struct{}{}
			wg.Go(func() {
				defer func() { <-slots }()
				replies[i] = l.ask(ctx, drive, m)
			})
		}
		wg.Wait()
		if ctx.Err() != nil {
			return nil, errs.Wrap("metadata.Scan", ctx.Err())
		}
		var failed []uint16
		for i, r := range replies {
			switch {
			case r == nil:
				failed = append(failed, ask[i])
			case overtaken(r, ask[i], group):
				return nil, errs.E("metadata.Scan", errs.Stale, "the drives serve another epoch of a partition")
			default:
				sources = append(sources, scanSource{ask[i], r})
			}
		}
		if len(failed) == 0 {
			return sources, nil
		}
		next, added, err := l.cover.Extend(l.c.Rand(), failed...)
		if err != nil {
			return nil, err
		}
		l.cover, ask = next, added
		if len(ask) == 0 {
			return sources, nil
		}
	}
}

func (l *listing) ask(ctx context.Context, drive uint16, m *ScanRequest) *ScanReply {
	rep, ok := l.c.Replicas.Replica(drive)
	if !ok {
		return nil
	}
	call, cancel := context.WithTimeout(ctx, l.c.CallTimeout)
	defer cancel()
	req := *m
	req.Drive = drive
	r, err := rep.Scan(call, &req)
	if err != nil {
		l.c.Logger.Debug("a drive failed to list", "drive", drive, "err", err)
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
