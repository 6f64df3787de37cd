package cluster

import (
	"encoding/binary"
	"maps"
	"slices"

	iradix "github.com/hashicorp/go-immutable-radix"

	"github.com/ostraka/ostraka/internal/errs"
	"github.com/ostraka/ostraka/placement"
)

// Versioning is the versioning state of a bucket, as S3 names it.
type Versioning uint8

// A bucket begins Unversioned and never returns to it.
const (
	Unversioned Versioning = iota
	Enabled
	Suspended
)

// Bucket is one bucket. It is immutable: a change makes another one.
type Bucket struct {
	ID         uint64 // never used again, not even for a bucket of the same name
	Name       string
	Owner      string // canonical id of the account
	Region     string
	Created    int64  // Unix nanoseconds
	Epoch      uint64 // rises when a deletion begins and when it is given up
	Deleting   bool
	Versioning Versioning
	ObjectLock bool
	Config     map[string][]byte // documents by name: policy, cors, lifecycle, …
}

// Account owns buckets.
type Account struct {
	ID   string // canonical id, 64 hex digits
	Name string
}

// AccessKey is a pair of keys.
type AccessKey struct {
	ID      string
	Secret  string
	Account string
	Root    bool
}

// State is what the control plane knows, as of one applied command. It is immutable.
type State struct {
	ClusterID [16]byte
	Version   uint64 // cluster version that was finalized (a door)
	Applied   uint64 // index of the last command in it

	layout   *placement.Layout
	nextID   uint64
	byName   *iradix.Tree // name → *Bucket; shared between states but for what changed
	byID     *iradix.Tree // id, big endian → *Bucket
	accounts map[string]Account
	keys     map[string]AccessKey
	settings Settings
	gen      generation

	retired         []uint16      // ascending; never shortened
	replacements    []Replacement // ascending by id
	lastReplacement uint64        // id that was given last, to a replacement or a plan of moves
	moves           moves

	nodes         []Node // ascending by id; none in a store of one process
	trust         []byte // of the certificates; opaque here
	trustRevision uint64 // how often trust was put
	lastDrive     uint16 // highest number that AddDrives gave
	recent        remembered
	expects       Expectation // of a new cluster that is not laid out yet
}

func emptyState() *State {
	return &State{nextID: 1, byName: iradix.New(), byID: iradix.New(),
		accounts: map[string]Account{}, keys: map[string]AccessKey{}, recent: newRemembered()}
}

// Initialized reports whether the cluster was ever made.
func (s *State) Initialized() bool { return s.layout != nil }

// Layout returns the current layout; nil before the cluster is made.
func (s *State) Layout() *placement.Layout { return s.layout }

// lasting returns the drives of the layout that are not retired, ascending.
func (s *State) lasting() (nums []uint16) {
	for _, d := range s.layout.Drives() {
		if !s.Retired(d.Num) {
			nums = append(nums, d.Num)
		}
	}
	return nums
}

// Bucket returns the bucket of a name.
func (s *State) Bucket(name string) (Bucket, bool) { return deref(s.named(name)) }

// BucketByID returns the bucket with an id.
func (s *State) BucketByID(id uint64) (Bucket, bool) { return deref(s.numbered(id)) }

func (s *State) named(name string) *Bucket {
	b, _ := s.byName.Get([]byte(name))
	x, _ := b.(*Bucket)
	return x
}

func (s *State) numbered(id uint64) *Bucket {
	b, _ := s.byID.Get(idKey(id))
	x, _ := b.(*Bucket)
	return x
}

func idKey(id uint64) []byte { return binary.BigEndian.AppendUint64(nil, id) }

func deref(b *Bucket) (Bucket, bool) {
	if b == nil {
		return Bucket{}, false
	}
	return *b, true
}

// Buckets returns all buckets, ascending by name.
func (s *State) Buckets() []Bucket {
	out := make([]Bucket, 0, s.byName.Len())
	s.byName.Root().Walk(func(_ []byte, b any) bool {
		out = append(out, *b.(*Bucket))
		return false
	})
	return out
}

// Account returns an account by its canonical id.
func (s *State) Account(id string) (Account, bool) { a, ok := s.accounts[id]; return a, ok }

// AccessKey returns a pair of keys by its id.
func (s *State) AccessKey(id string) (AccessKey, bool) { k, ok := s.keys[id]; return k, ok }

// RootKey returns the root keys that the control plane keeps, if any.
func (s *State) RootKey() (AccessKey, bool) {
	for _, id := range sortedKeys(s.keys) {
		if s.keys[id].Root {
			return s.keys[id], true
		}
	}
	return AccessKey{}, false
}

// apply returns the state after c, or the error that c ends with; then nothing changed but
// Applied. It reads no clock and draws nothing at random: every voter comes to the same state.
func (s *State) apply(index uint64, c *command) (*State, any) {
	next := *s
	next.Applied = index
	refuse := func(k errs.Kind, msg string) (*State, any) { return &next, errs.E("cluster.apply", k, msg) }
	if !s.Initialized() && c.op != opInit {
		return refuse(errs.Unavailable, "the cluster is not made yet")
	}
	switch c.op {
	case opInit:
		if s.Initialized() {
			return &next, nil
		}
		next.ClusterID, next.layout = c.cluster, c.layout
		next.accounts = map[string]Account{c.account.ID: c.account}
		next.keys = map[string]AccessKey{}
		if c.key.ID != "" {
			next.keys[c.key.ID] = c.key
		}
		return &next, nil
	case opExpect, opLayOut:
		result, err := s.applyFound(&next, c)
		if err != nil {
			return &next, err
		}
		return &next, result
	case opCreateBucket:
		if s.expects.Nodes > 0 {
			return refuse(errs.Unavailable, s.expects.waiting())
		}
		if b := s.named(c.bucket.Name); b != nil {
			return &next, &existsError{*b}
		}
		b := c.bucket
		b.ID, b.Epoch = s.nextID, 1
		next.nextID++
		next.put(&b)
		return &next, b
	case opPutKey:
		next.keys = maps.Clone(s.keys)
		next.keys[c.key.ID] = c.key
		return &next, nil
	case opDeleteKey:
		next.keys = maps.Clone(s.keys)
		delete(next.keys, c.key.ID)
		return &next, nil
	case opBarrier:
		return &next, nil
	case opBeginReplace, opTakeOver, opPublishSwap, opFinishMembership, opFinishReplace, opSetSettings:
		result, err := s.applyReplace(&next, c)
		if err != nil {
			return &next, err
		}
		return &next, result
	case opApplyPlan, opTakeOverPlan, opBeginMoves, opPublishMoves, opMovesDone, opRevertPlan, opReleaseDrive, opGiveUp:
		result, err := s.applyMoves(&next, c)
		if err != nil {
			return &next, err
		}
		return &next, result
	case opBecomeCluster, opPutNode, opRemoveNode, opAddDrives, opPutTrust, opSetZone:
		result, err := s.applyNodes(&next, c)
		if err != nil {
			same := *s // a refusal leaves nothing half done
			same.Applied = index
			return &same, err
		}
		return &next, result
	}
	was := s.numbered(c.id)
	if was == nil {
		return refuse(errs.NotFound, "no such bucket")
	}
	b := *was
	switch c.op {
	case opBeginDelete:
		b.Deleting = true
		b.Epoch++
	case opReopen:
		if !b.Deleting || b.Epoch != c.epoch {
			return refuse(errs.Stale, "another deletion of the bucket has begun since")
		}
		b.Deleting = false
		b.Epoch++
	case opFinishDelete:
		if !b.Deleting || b.Epoch != c.epoch {
			return refuse(errs.Stale, "the deletion of the bucket was given up, or another has begun")
		}
		next.remove(&b)
		return &next, nil
	case opSetVersioning:
		b.Versioning = c.versioning
	case opSetConfig:
		b.Config = maps.Clone(b.Config)
		if c.value == nil {
			delete(b.Config, c.document)
		} else {
			if b.Config == nil {
				b.Config = map[string][]byte{}
			}
			b.Config[c.document] = c.value
		}
	default:
		return refuse(errs.Unsupported, "a command of a newer version")
	}
	next.put(&b)
	return &next, b
}

// put stores b in s; the trees of the state before stay as they are.
func (s *State) put(b *Bucket) {
	s.byName, _, _ = s.byName.Insert([]byte(b.Name), b)
	s.byID, _, _ = s.byID.Insert(idKey(b.ID), b)
}

func (s *State) remove(b *Bucket) {
	s.byName, _, _ = s.byName.Delete([]byte(b.Name))
	s.byID, _, _ = s.byID.Delete(idKey(b.ID))
}

// existsError is an errs.Exists that knows which bucket was in the way.
type existsError struct{ bucket Bucket }

func (e *existsError) Error() string { return "cluster.CreateBucket: the bucket exists" }
func (e *existsError) Unwrap() error {
	return errs.E("cluster.CreateBucket", errs.Exists, "the bucket exists")
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
