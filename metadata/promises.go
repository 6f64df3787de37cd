package metadata

// promises remembers the highest ballot promised for each name, for a bounded number of names in
// two generations: when the young one is full the old one is forgotten, and everything that is not
// remembered counts as promised at mark, which is at least every ballot forgotten. It is not safe
// for concurrent use; its owner's lock guards it.
type promises struct {
	limit      int
	mark       Ballot
	young, old map[string]Ballot
	oldest     Ballot // highest in old
	newest     Ballot // highest in young
}

func newPromises(limit int, mark Ballot) promises {
	return promises{limit: max(limit/2, 1), mark: mark}
}

// of returns the promise for name.
func (p *promises) of(name string) Ballot {
	if b, ok := p.young[name]; ok {
		return b
	}
	if b, ok := p.old[name]; ok {
		return b
	}
	return p.mark
}

// raise records a promise that is above of(name).
func (p *promises) raise(name string, b Ballot) {
	if len(p.young) >= p.limit {
		if p.mark.Less(p.oldest) {
			p.mark = p.oldest
		}
		p.old, p.oldest = p.young, p.newest
		p.young, p.newest = make(map[string]Ballot, len(p.old)), Ballot{}
	}
	if p.young == nil {
		p.young = map[string]Ballot{}
	}
	p.young[name] = b
	if p.newest.Less(b) {
		p.newest = b
	}
}

// forget drops the promise for name when it is not above b: the row at b stands for it.
func (p *promises) forget(name string, b Ballot) {
	if !b.Less(p.of(name)) {
		delete(p.young, name)
		delete(p.old, name)
	}
}
