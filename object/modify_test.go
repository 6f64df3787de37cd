package object

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/ostraka/ostraka/metadata"
)

func tagged(v string) []metadata.Field { return []metadata.Field{{Name: "tag", Value: v}} }

// A change in place touches the tags of one version, and neither its body nor any other version.
func TestModify(t *testing.T) {
	s := newStack(t, stackOptions{})
	s.bucketFor("bkt", Unversioned)
	ctx := context.Background()
	bodies := map[string][]byte{}
	tags := map[string][]metadata.Field{}
	put := func(n int) {
		t.Helper()
		b := body(uint64(n), n)
		info, err := s.put("bkt", "k", b, PutOptions{Tags: tagged("first")})
		if err != nil {
			t.Fatal(err)
		}
		bodies[info.VersionID], tags[info.VersionID] = b, tagged("first")
	}
	check := func() {
		t.Helper()
		for id, want := range bodies {
			info, got, err := s.get("bkt", "k", GetOptions{VersionID: &id})
			if err != nil || !bytes.Equal(got, want) || !slices.Equal(info.Tags, tags[id]) {
				t.Fatalf("version %s: %d bytes, tags %v, want %d and %v: %v", id, len(got), info.Tags, len(want), tags[id], err)
			}
		}
	}
	put(100) // in the record
	if err := s.SetVersioning(ctx, "bkt", Enabled); err != nil {
		t.Fatal(err)
	}
	put(600_000)
	put(200)
	put(5000)
	check()
	for id := range bodies {
		was, _, err := s.get("bkt", "k", GetOptions{VersionID: &id})
		if err != nil {
			t.Fatal(err)
		}
		info, err := s.Modify(ctx, "bkt", "k", &id, func(v *metadata.Version) error { v.Tags = tagged(id); return nil })
		if err != nil || info.VersionID != id || !info.ModTime.Equal(was.ModTime) || info.IsLatest != was.IsLatest || !slices.Equal(info.Tags, tagged(id)) {
			t.Fatalf("%+v, %v", info, err)
		}
		tags[id] = tagged(id)
		check()
	}
	refusal := errors.New("no")
	if _, err := s.Modify(ctx, "bkt", "k", nil, func(v *metadata.Version) error { v.Tags = nil; return refusal }); !errors.Is(err, refusal) {
		t.Fatalf("a refused change: %v", err)
	}
	check()
	absent := strings.Repeat("1", 32)
	nothing := func(*metadata.Version) error { t.Error("changed what is not there"); return nil }
	if _, err := s.Modify(ctx, "bkt", "k", &absent, nothing); !errors.Is(err, ErrNoSuchVersion) {
		t.Fatal(err)
	}
	del, err := s.Delete(ctx, "bkt", "k", DeleteOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Modify(ctx, "bkt", "k", nil, nothing); !errors.Is(err, ErrNoSuchKey) {
		t.Fatal(err)
	}
	if _, err := s.Modify(ctx, "bkt", "k", &del.VersionID, nothing); !errors.Is(err, ErrMethodNotAllowed) {
		t.Fatal(err)
	}
	check()
}

// What another gateway does while a change in place is being decided comes before the change.
func TestModifyDuringOtherWrites(t *testing.T) {
	o := stackOptions{}
	s := newStack(t, o)
	ctx := context.Background()
	meta := metadata.NewClient(metadata.ClientConfig{Replicas: replicas{s, false}})
	other := s.gateway(meta, o)
	defer func() {
		if err := errors.Join(other.Close(ctx), meta.Close(ctx)); err != nil {
			t.Error(err)
		}
	}()
	null, bucket := NullVersion, ""
	put := func() error {
		b := []byte("another")
		_, err := other.Put(ctx, bucket, "k", bytes.NewReader(b), PutOptions{Size: int64(len(b)), Tags: tagged("another")})
		return err
	}
	remove := func() error {
		_, err := other.Delete(ctx, bucket, "k", DeleteOptions{})
		return err
	}
	for _, c := range []struct {
		name       string
		versioning Versioning
		version    *string
		meanwhile  func() error
		reason     *Reason // nil: done
		body       string  // of the version that is changed
	}{
		{"replaced", Unversioned, nil, put, nil, "another"},
		{"replaced, by id", Unversioned, &null, put, nil, "another"},
		{"deleted", Unversioned, nil, remove, ErrNoSuchKey, ""},
		{"deleted, by id", Unversioned, &null, remove, ErrNoSuchVersion, ""},
		{"covered", Enabled, nil, put, nil, "another"},
		{"covered, by id", Enabled, &null, put, nil, "one"},
		{"covered by a marker", Enabled, nil, remove, ErrNoSuchKey, ""},
		{"covered by a marker, by id", Enabled, &null, remove, nil, "one"},
		{"replaced by a marker, by id", Suspended, &null, remove, ErrMethodNotAllowed, ""},
		{"null replaced, by id", Suspended, &null, put, nil, "another"},
	} {
		t.Run(c.name, func(t *testing.T) {
			bucket = strings.ReplaceAll(strings.ReplaceAll(c.name, " ", "-"), ",", "")
			s.bucketFor(bucket, Unversioned)
			if _, err := s.put(bucket, "k", []byte("one"), PutOptions{Tags: tagged("one")}); err != nil {
				t.Fatal(err)
			}
			if c.versioning != Unversioned {
				if err := s.SetVersioning(ctx, bucket, c.versioning); err != nil {
					t.Fatal(err)
				}
			}
			runs := 0
			_, err := s.Modify(ctx, bucket, "k", c.version, func(v *metadata.Version) error {
				if runs++; runs == 1 {
					if err := c.meanwhile(); err != nil {
						t.Error(err)
					}
				}
				v.Tags = append(slices.Clone(v.Tags), tagged("changed")...)
				return nil
			})
			if c.reason != nil {
				if !errors.Is(err, c.reason) {
					t.Fatalf("%v, want %v", err, c.reason)
				}
			} else {
				if err != nil {
					t.Fatal(err)
				}
				info, got, err := s.get(bucket, "k", GetOptions{VersionID: c.version})
				if err != nil || string(got) != c.body || !slices.Equal(info.Tags, append(tagged(c.body), tagged("changed")...)) {
					t.Errorf("%q with %v, %v", got, info.Tags, err)
				}
			}
		})
	}
}
