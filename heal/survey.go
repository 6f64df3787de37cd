package heal

import (
	"context"
	"encoding/binary"
	"time"

	"github.com/ostraka/ostraka/erasure"
	"github.com/ostraka/ostraka/node"
)

// survey is what the status tells besides the result of the last check. h.mu guards it.
type survey struct {
	at    time.Time // when it was made; zero: it is to be made
	read  time.Time // since when every shard that was there then was read on all local drives; zero: not known
	since int64     // shards on the local drives that were written after the last check began
	fresh bool      // most shards were written after read
}

const (
	surveyEvery = time.Minute
	// Up to surveyRows shard rows of a drive are looked at; of more, as many at each of surveySpots places of the
	// id space as make about that many.
	surveyRows  = 1024
	surveySpots = 16
)

// lookOver makes the survey anew if it is old. Of drives that do not answer, the old one stands.
func (h *Healer) lookOver(ctx context.Context) {
	now := h.c.Now()
	h.mu.Lock()
	over := h.check.survey.at.IsZero() || passed(now, h.check.survey.at, surveyEvery)
	h.mu.Unlock()
	if !over || h.check.state.Verified.IsZero() {
		return
	}
	s, err := h.surveyOf(ctx, h.local())
	if err != nil {
		h.c.Logger.Debug("it cannot be told what was written since the last check", "err", err)
		return
	}
	s.at = now
	h.mu.Lock()
	defer h.mu.Unlock()
	h.check.survey = s
}

func (h *Healer) surveyOf(ctx context.Context, drives []node.Drive) (s survey, err error) {
	c := &h.check.state
	for i, d := range drives {
		var scrub scrubState
		if err := h.load(ctx, d, jobScrub, &scrub); err != nil {
			return s, err
		}
		if read := later(c.Read, scrub.read()); i == 0 || read.Before(s.read) {
			s.read = read
		}
	}
	var all, unread int64
	for _, d := range drives {
		written, shards, err := sealTimes(ctx, d)
		if err != nil {
			return s, err
		}
		youngerThan := func(from time.Time) (n int64) {
			for _, at := range written {
				if !at.Before(from) {
					n++
				}
			}
			return int64(float64(n) / float64(max(len(written), 1)) * float64(shards))
		}
		all += shards
		unread += youngerThan(s.read)
		s.since += youngerThan(c.VerifiedFrom)
	}
	s.fresh = 2*unread > all
	return s, nil
}

// read returns when the last complete round of a scrub began; zero: none did.
func (s *scrubState) read() time.Time {
	switch {
	case s.LastDone.IsZero():
		return time.Time{}
	case s.Begun.IsZero():
		return s.LastBegun
	}
	return s.PrevBegun
}

// sealTimes returns when some of the shards of a drive were written, drawn evenly, and how many it has: up to
// surveyRows all of them.
func sealTimes(ctx context.Context, d node.Drive) (list []time.Time, shards int64, err error) {
	from := func(spot uint64, limit int) error {
		var id erasure.DataID
		binary.BigEndian.PutUint64(id[:], spot)
		rows, err := d.ShardRows(ctx, id, 0, limit)
		for i := range rows {
			list = append(list, rows[i].Sealed)
		}
		return err
	}
	if err := from(0, surveyRows); err != nil || len(list) < surveyRows {
		return list, int64(len(list)), err
	}
	list = nil
	for spot := range uint64(surveySpots) {
		if err := from(spot<<60, surveyRows/surveySpots); err != nil {
			return nil, 0, err
		}
	}
	shards, _, err = d.ShardUsage(ctx)
	return list, shards, err
}

// phaseOf tells what a check does.
func phaseOf(s *checkState) string {
	if s.Light {
		return PhasePresence
	}
	return ""
}
