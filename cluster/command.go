package cluster

import (
	"bytes"
	"fmt"
	"slices"

	"github.com/ostraka/ostraka/disk"
	"github.com/ostraka/ostraka/internal/errs"
	"github.com/ostraka/ostraka/placement"
	"google.golang.org/protobuf/encoding/protowire"
)

// opCode names a command. The numbers are part of the format: append, never renumber.
type opCode uint8

const (
	opInit          opCode = 1
	opCreateBucket  opCode = 2
	opBeginDelete   opCode = 3
	opFinishDelete  opCode = 4
	opReopen        opCode = 5
	opSetVersioning opCode = 6
	opSetConfig     opCode = 7
	opPutKey        opCode = 8
	opDeleteKey     opCode = 9
	opBarrier       opCode = 10

	opBeginReplace     opCode = 11
	opTakeOver         opCode = 12
	opPublishSwap      opCode = 13
	opFinishMembership opCode = 14
	opFinishReplace    opCode = 15
	opSetSettings      opCode = 16

	opBecomeCluster opCode = 17
	opPutNode       opCode = 18
	opRemoveNode    opCode = 19
	opAddDrives     opCode = 20
	opPutTrust      opCode = 21

	opExpect opCode = 28
	opLayOut opCode = 29

	opApplyPlan    opCode = 40
	opTakeOverPlan opCode = 41
	opBeginMoves   opCode = 42
	opPublishMoves opCode = 43
	opMovesDone    opCode = 44
	opRevertPlan   opCode = 45
	opReleaseDrive opCode = 46

	opGiveUp  opCode = 50
	opSetZone opCode = 51
)

// known reports whether this build knows what a command does.
func (op opCode) known() bool {
	return opInit <= op && op <= opPutTrust || op == opExpect || op == opLayOut || opApplyPlan <= op && op <= opReleaseDrive || op == opGiveUp || op == opSetZone
}

// command is one change of the state. Times and ids travel in it, because applying it must give
// the same state everywhere.
type command struct {
	op         opCode
	id         uint64 // bucket, or replacement
	epoch      uint64
	bucket     Bucket
	versioning Versioning
	document   string
	value      []byte // nil: remove
	cluster    [16]byte
	layout     *placement.Layout
	account    Account
	key        AccessKey
	term       uint64
	old        uint16
	drive      placement.Drive
	path       string
	partitions []uint32
	settings   Settings
	move       moveCommand
	time       int64 // Unix nanoseconds
	change     changeID
	node       Node
	drives     []placement.Drive
}

// Limits of what is decoded, so that a damaged length allocates nothing large.
const (
	maxDocument = 1 << 20 // of one configuration document
	maxField    = 16 << 20
	maxPath     = 4096
)

func putUint(b []byte, n protowire.Number, v uint64) []byte {
	if v == 0 {
		return b
	}
	return protowire.AppendVarint(protowire.AppendTag(b, n, protowire.VarintType), v)
}

func putBytes(b []byte, n protowire.Number, v []byte) []byte {
	if len(v) == 0 {
		return b
	}
	return protowire.AppendBytes(protowire.AppendTag(b, n, protowire.BytesType), v)
}

func putString(b []byte, n protowire.Number, v string) []byte { return putBytes(b, n, []byte(v)) }

func putBool(b []byte, n protowire.Number, v bool) []byte {
	if v {
		return putUint(b, n, 1)
	}
	return b
}

// field is one decoded field: a number or bytes.
type field struct {
	num   protowire.Number
	u     uint64
	bytes []byte
}

func errMalformed() error {
	return errs.E("cluster.decode", errs.Corrupt, "malformed control-plane data")
}

// fields calls f for each field of b; f returns false for numbers that it does not know, which are
// skipped from 1000 on and refused below.
func fields(b []byte, f func(field) (known bool, err error)) error {
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return errMalformed()
		}
		b = b[n:]
		x := field{num: num}
		switch typ {
		case protowire.VarintType:
			x.u, n = protowire.ConsumeVarint(b)
		case protowire.BytesType:
			x.bytes, n = protowire.ConsumeBytes(b)
		default:
			if n = protowire.ConsumeFieldValue(num, typ, b); n >= 0 && num < 1000 {
				return errMalformed()
			}
		}
		if n < 0 || len(x.bytes) > maxField {
			return errMalformed()
		}
		b = b[n:]
		known, err := f(x)
		if err != nil {
			return err
		}
		if !known && num < 1000 {
			return errs.E("cluster.decode", errs.Unsupported, "control-plane data of a newer version")
		}
	}
	return nil
}

func appendBucket(b []byte, x *Bucket) []byte {
	b = putUint(b, 1, x.ID)
	b = putString(b, 2, x.Name)
	b = putString(b, 3, x.Owner)
	b = putString(b, 4, x.Region)
	b = putUint(b, 5, uint64(x.Created))
	b = putUint(b, 6, x.Epoch)
	b = putBool(b, 7, x.Deleting)
	b = putUint(b, 8, uint64(x.Versioning))
	b = putBool(b, 9, x.ObjectLock)
	for _, k := range sortedKeys(x.Config) {
		b = putBytes(b, 10, putBytes(putString(nil, 1, k), 2, x.Config[k]))
	}
	return b
}

func decodeBucket(b []byte) (x Bucket, err error) {
	err = fields(b, func(f field) (bool, error) {
		switch f.num {
		case 1:
			x.ID = f.u
		case 2:
			x.Name = string(f.bytes)
		case 3:
			x.Owner = string(f.bytes)
		case 4:
			x.Region = string(f.bytes)
		case 5:
			x.Created = int64(f.u)
		case 6:
			x.Epoch = f.u
		case 7:
			x.Deleting = f.u != 0
		case 8:
			x.Versioning = Versioning(f.u)
			if f.u > uint64(Suspended) {
				return true, errMalformed()
			}
		case 9:
			x.ObjectLock = f.u != 0
		case 10:
			var k string
			v := []byte{}
			err := fields(f.bytes, func(f field) (bool, error) {
				switch f.num {
				case 1:
					k = string(f.bytes)
				case 2:
					v = append(v, f.bytes...)
				default:
					return false, nil
				}
				return true, nil
			})
			if err != nil {
				return true, err
			}
			if x.Config == nil {
				x.Config = map[string][]byte{}
			}
			x.Config[k] = v
		default:
			return false, nil
		}
		return true, nil
	})
	return x, err
}

func appendAccount(b []byte, a *Account) []byte { return putString(putString(b, 1, a.ID), 2, a.Name) }

func decodeAccount(b []byte) (a Account, err error) {
	err = fields(b, func(f field) (bool, error) {
		switch f.num {
		case 1:
			a.ID = string(f.bytes)
		case 2:
			a.Name = string(f.bytes)
		default:
			return false, nil
		}
		return true, nil
	})
	return a, err
}

func appendKey(b []byte, k *AccessKey) []byte {
	return putBool(putString(putString(putString(b, 1, k.ID), 2, k.Secret), 3, k.Account), 4, k.Root)
}

func decodeKey(b []byte) (k AccessKey, err error) {
	err = fields(b, func(f field) (bool, error) {
		switch f.num {
		case 1:
			k.ID = string(f.bytes)
		case 2:
			k.Secret = string(f.bytes)
		case 3:
			k.Account = string(f.bytes)
		case 4:
			k.Root = f.u != 0
		default:
			return false, nil
		}
		return true, nil
	})
	return k, err
}

func (c *command) encode() []byte {
	b := putUint(nil, 1, uint64(c.op))
	b = putUint(b, 2, c.id)
	b = putUint(b, 3, c.epoch)
	if c.op == opCreateBucket {
		b = putBytes(b, 4, appendBucket(nil, &c.bucket))
	}
	b = putUint(b, 5, uint64(c.versioning))
	b = putString(b, 6, c.document)
	if c.value != nil {
		b = protowire.AppendBytes(protowire.AppendTag(b, 7, protowire.BytesType), c.value)
	}
	if c.op == opLayOut {
		b = putBytes(b, 9, c.layout.Append(nil))
	}
	if c.op == opInit {
		b = putBytes(b, 8, c.cluster[:])
		b = putBytes(b, 9, c.layout.Append(nil))
		b = putBytes(b, 10, appendAccount(nil, &c.account))
	}
	if c.op == opInit || c.op == opPutKey || c.op == opDeleteKey {
		b = putBytes(b, 11, appendKey(nil, &c.key))
	}
	b = putUint(b, 12, c.term)
	b = putUint(b, 13, uint64(c.old))
	if c.op == opBeginReplace {
		b = putBytes(b, 14, appendDrive(nil, &c.drive))
	}
	b = putString(b, 15, c.path)
	b = putBytes(b, 16, appendNumbers(nil, c.partitions))
	if c.op == opSetSettings {
		b = putBytes(b, 17, appendSettings(nil, &c.settings))
	}
	b = putUint(b, 18, uint64(c.time))
	if c.change != (changeID{}) {
		b = putBytes(b, 19, c.change[:])
	}
	if c.node.ID != (disk.ID{}) {
		b = putBytes(b, 20, appendNode(nil, &c.node))
	}
	for i := range c.drives {
		b = putBytes(b, 21, appendDrive(nil, &c.drives[i]))
	}
	return c.move.append(b)
}

// decodeCommand reads a command. One that this build does not know ends with Unsupported: whoever passed over it would
// have another state than all others from then on.
func decodeCommand(b []byte) (*command, error) {
	c := new(command)
	err := fields(b, func(f field) (known bool, err error) {
		switch f.num {
		case 1:
			c.op = opCode(f.u)
			if f.u > 255 {
				err = errMalformed()
			}
		case 2:
			c.id = f.u
		case 3:
			c.epoch = f.u
		case 4:
			c.bucket, err = decodeBucket(f.bytes)
		case 5:
			c.versioning = Versioning(f.u)
			if f.u > uint64(Suspended) {
				err = errMalformed()
			}
		case 6:
			c.document = string(f.bytes)
		case 7:
			c.value = append([]byte{}, f.bytes...)
		case 8:
			if len(f.bytes) != 16 {
				return true, errMalformed()
			}
			copy(c.cluster[:], f.bytes)
		case 9:
			c.layout, err = placement.Decode(f.bytes)
		case 10:
			c.account, err = decodeAccount(f.bytes)
		case 11:
			c.key, err = decodeKey(f.bytes)
		case 12:
			c.term = f.u
		case 13:
			c.old, err = driveNum(f.u)
		case 14:
			c.drive, err = decodeDrive(f.bytes)
		case 15:
			c.path = string(f.bytes)
		case 16:
			c.partitions, err = decodeNumbers[uint32](f.bytes, 1<<placement.MaxBits, 1<<placement.MaxBits-1)
		case 17:
			c.settings, err = decodeSettings(f.bytes)
		case 18:
			c.time = int64(f.u)
		case 19:
			err = fixed(c.change[:], f.bytes)
		case 20:
			c.node, err = decodeNode(f.bytes)
		case 21:
			var d placement.Drive
			if d, err = decodeDrive(f.bytes); len(c.drives) == maxNewDrives {
				err = errMalformed()
			}
			c.drives = append(c.drives, d)
		default:
			return c.move.field(f)
		}
		return true, err
	})
	if err == nil && (c.op == opInit || c.op == opLayOut) && c.layout == nil {
		err = errMalformed()
	}
	if err == nil && !c.op.known() {
		err = errs.E("cluster.decode", errs.Unsupported, fmt.Sprintf("command %d of a newer version", c.op))
	}
	return c, err
}

// encode writes the whole state: the body of snapshots and of the copies.
func (s *State) encode() []byte {
	b := putBytes(nil, 1, s.ClusterID[:])
	b = putUint(b, 2, s.Version)
	b = putUint(b, 3, s.Applied)
	b = putUint(b, 4, s.nextID)
	if s.layout != nil {
		b = putBytes(b, 5, s.layout.Append(nil))
	}
	s.byName.Root().Walk(func(_ []byte, x any) bool {
		b = putBytes(b, 6, appendBucket(nil, x.(*Bucket)))
		return false
	})
	for _, id := range sortedKeys(s.accounts) {
		a := s.accounts[id]
		b = putBytes(b, 7, appendAccount(nil, &a))
	}
	for _, id := range sortedKeys(s.keys) {
		k := s.keys[id]
		b = putBytes(b, 8, appendKey(nil, &k))
	}
	// A state without what follows is one that earlier versions read.
	b = putBytes(b, 9, appendNumbers(nil, s.retired))
	b = putUint(b, 10, s.lastReplacement)
	for i := range s.replacements {
		b = putBytes(b, 11, appendReplacement(nil, &s.replacements[i]))
	}
	b = putBytes(b, 12, appendSettings(nil, &s.settings))
	if s.gen.number != 0 {
		b = putBytes(b, 13, appendGeneration(nil, &s.gen))
	}
	for i := range s.nodes {
		b = putBytes(b, 14, appendNode(nil, &s.nodes[i]))
	}
	b = putBytes(b, 15, s.trust)
	b = putUint(b, 16, s.trustRevision)
	b = putUint(b, 17, uint64(s.lastDrive))
	s.recent.each(func(id changeID, index uint64, result []byte) {
		b = putBytes(b, 18, appendRemembered(nil, id, index, result))
	})
	b = putBytes(b, 19, s.expects.append(nil))
	return s.moves.append(b)
}

func decodeState(b []byte) (*State, error) {
	s := emptyState()
	err := fields(b, func(f field) (known bool, err error) {
		switch f.num {
		case 1:
			if len(f.bytes) != 16 {
				return true, errMalformed()
			}
			copy(s.ClusterID[:], f.bytes)
		case 2:
			s.Version = f.u
		case 3:
			s.Applied = f.u
		case 4:
			s.nextID = f.u
		case 5:
			s.layout, err = placement.Decode(f.bytes)
		case 6:
			var x Bucket
			if x, err = decodeBucket(f.bytes); err == nil {
				if s.named(x.Name) != nil || s.numbered(x.ID) != nil || x.ID >= s.nextID {
					return true, errMalformed()
				}
				s.put(&x)
			}
		case 7:
			var a Account
			if a, err = decodeAccount(f.bytes); err == nil {
				s.accounts[a.ID] = a
			}
		case 8:
			var k AccessKey
			if k, err = decodeKey(f.bytes); err == nil {
				s.keys[k.ID] = k
			}
		case 9:
			s.retired, err = decodeNumbers[uint16](f.bytes, 1<<16, 1<<16-1)
			if err == nil && !slices.IsSorted(s.retired) {
				err = errMalformed()
			}
		case 10:
			s.lastReplacement = f.u
		case 11:
			var r Replacement
			if r, err = decodeReplacement(f.bytes); err == nil {
				if n := len(s.replacements); r.ID == 0 || n > 0 && r.ID <= s.replacements[n-1].ID {
					return true, errMalformed()
				}
				s.replacements = append(s.replacements, r)
			}
		case 12:
			s.settings, err = decodeSettings(f.bytes)
		case 13:
			s.gen, err = decodeGeneration(f.bytes)
		case 14:
			var n Node
			if n, err = decodeNode(f.bytes); err == nil {
				if last := len(s.nodes); last == maxNodes || n.ID == (disk.ID{}) || last > 0 && bytes.Compare(s.nodes[last-1].ID[:], n.ID[:]) >= 0 {
					return true, errMalformed()
				}
				s.nodes = append(s.nodes, n)
			}
		case 15:
			s.trust = bytes.Clone(f.bytes)
		case 16:
			s.trustRevision = f.u
		case 17:
			s.lastDrive, err = driveNum(f.u)
		case 18:
			s.recent, err = s.recent.decodeOne(f.bytes)
		case 19:
			s.expects, err = decodeExpectation(f.bytes)
		default:
			return s.moves.field(f)
		}
		return true, err
	})
	if err == nil && s.Applied < s.gen.began {
		err = errMalformed()
	}
	if n := len(s.replacements); err == nil && n > 0 && s.replacements[n-1].ID > s.lastReplacement {
		err = errMalformed()
	}
	if p := s.moves.plan; err == nil && p != nil && p.ID > s.lastReplacement {
		err = errMalformed()
	}
	if err != nil {
		return nil, err
	}
	return s, nil
}
