package node

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"slices"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/ostraka/ostraka/disk"
	"github.com/ostraka/ostraka/internal/errs"
	"github.com/ostraka/ostraka/internal/vfsx"
)

// This file is about drives as those of a node of a cluster. Each has a file beside its identity, which
// says whose it is (disk.NodeFile, JSON):
//
//	{"cluster": "…", "node": "…", "drive": "…"}
//
// It is written before the drive has a number, so that whatever a crash leaves is completed: an empty
// directory with the file is asked a number for under the id that the file names, and gets the one that
// it was given before. All drives of a process are of one node; what says otherwise is refused.

// belonging is what the file says.
type belonging struct {
	Cluster disk.ID `json:"cluster"`
	Node    disk.ID `json:"node"`
	Drive   disk.ID `json:"drive"`
}

// maxBelonging bounds the file, in bytes.
const maxBelonging = 4 << 10

// Newcomer is an empty directory that is to become a drive.
type Newcomer struct {
	Path     string
	Drive    disk.ID
	Capacity uint64 // bytes of its file system; 0: not known
}

// Node returns the id of the node that the drives belong to; zero for a store that never was a cluster.
func (s *Set) Node() disk.ID {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.node
}

// readBelonging returns nil where there is no file.
func (s *Set) readBelonging(path string) (*belonging, error) {
	name := s.fs.PathJoin(path, disk.NodeFile)
	raw, err := vfsx.ReadFile(s.fs, name, maxBelonging)
	if vfsx.IsNotExist(err) {
		return nil, nil
	}
	b := new(belonging)
	if err == nil {
		err = json.Unmarshal(raw, b)
	}
	if err == nil && (b.Cluster.IsZero() || b.Node.IsZero() || b.Drive.IsZero()) {
		err = fmt.Errorf("an id is missing")
	}
	if err != nil {
		return nil, &errs.Error{Op: "node.OpenSet", Kind: errs.Corrupt, Msg: name + " cannot be read as the file of a node", Err: err}
	}
	return b, nil
}

func (s *Set) writeBelonging(path string, b belonging) error {
	raw, err := json.Marshal(b)
	if err == nil {
		err = vfsx.ReplaceFile(s.fs, s.fs.PathJoin(path, disk.NodeFile), append(raw, '\n'))
	}
	if err != nil {
		return &errs.Error{Op: "node.SetNode", Kind: errs.Drive, Msg: "whose drive it is cannot be written to " + path, Err: err}
	}
	return nil
}

// findNode reads whose the directories are, before any is opened. joining: some empty one is to become a
// drive of a cluster.
func (s *Set) findNode(found []disk.Inspection) (joining bool, err error) {
	const op = "node.OpenSet"
	var first *belonging
	var at string
	for _, in := range found {
		if in.Status != disk.Empty && in.Status != disk.Identified {
			continue
		}
		b, err := s.readBelonging(in.Path)
		switch {
		case err != nil && in.Status == disk.Empty:
			return false, err
		case err != nil: // openDrive refuses it
			continue
		case b == nil:
			continue
		case in.Identity != nil && (in.Identity.Cluster != b.Cluster || in.Identity.Drive != b.Drive):
			continue // likewise
		case first != nil && (first.Node != b.Node || first.Cluster != b.Cluster):
			return false, errs.E(op, errs.Invalid, fmt.Sprintf("drives of two nodes are given: %s belongs to node %s of cluster %s, %s to node %s of cluster %s",
				at, first.Node, first.Cluster, in.Path, b.Node, b.Cluster))
		}
		if first == nil {
			first, at = b, in.Path
		}
		joining = joining || in.Status == disk.Empty
	}
	if first != nil {
		if !s.cluster.IsZero() && s.cluster != first.Cluster {
			return false, errs.E(op, errs.Invalid, fmt.Sprintf("%s belongs to cluster %s, not to %s", at, first.Cluster, s.cluster))
		}
		s.node, s.cluster = first.Node, first.Cluster
	}
	return joining, nil
}

// belongs refuses a drive of another node.
func (s *Set) belongs(path string, id *disk.Identity) error {
	b, err := s.readBelonging(path)
	if err != nil || b == nil {
		return err
	}
	node := s.Node()
	switch {
	case b.Cluster != id.Cluster || b.Drive != id.Drive:
		return &disk.StatusError{Path: path, Status: disk.WrongDrive, Identity: id,
			Detail: fmt.Sprintf("is drive %s of cluster %s, and its %s speaks of drive %s of cluster %s", id.Drive, id.Cluster, disk.NodeFile, b.Drive, b.Cluster)}
	case b.Node != node:
		return &disk.StatusError{Path: path, Status: disk.WrongDrive, Identity: id,
			Detail: fmt.Sprintf("belongs to node %s, and the other drives here to node %s", b.Node, node)}
	}
	return nil
}

// SetNode makes this process's drives those of a node, durably; it is repeatable. Drives that are not here
// get the note when they return. Another node than the drives have is refused (errs.Conflict).
func (s *Set) SetNode(node disk.ID) error {
	const op = "node.SetNode"
	s.mu.Lock()
	if !s.node.IsZero() && s.node != node {
		defer s.mu.Unlock()
		return errs.E(op, errs.Conflict, fmt.Sprintf("the drives belong to node %s", s.node))
	}
	s.node = node
	s.mu.Unlock()
	for _, d := range s.Open() {
		if err := s.noteNode(d.Path(), d.Identity()); err != nil {
			return err
		}
	}
	return nil
}

// noteNode writes whose a drive is, unless that is written.
func (s *Set) noteNode(path string, id disk.Identity) error {
	node := s.Node()
	if node.IsZero() {
		return nil
	}
	if b, err := s.readBelonging(path); err != nil || b != nil {
		return err
	}
	return s.writeBelonging(path, belonging{Cluster: id.Cluster, Node: node, Drive: id.Drive})
}

// Fresh reports whether no directory holds a drive: all are empty, or about to become drives. Only then may a node
// join a cluster with them.
func (s *Set) Fresh() bool {
	for _, p := range s.Status() {
		if p.State != PathEmpty || p.Known {
			return false
		}
	}
	return true
}

// Unfinished returns the paths that were about to become drives when the process ended; in a Fresh set all paths.
func (s *Set) Unfinished() (paths []string, err error) {
	fresh := s.Fresh()
	for _, p := range s.Status() {
		if p.State != PathEmpty || p.Known {
			continue
		}
		b, err := s.readBelonging(p.Path)
		if err != nil {
			return nil, err
		}
		if fresh || b != nil {
			paths = append(paths, p.Path)
		}
	}
	return paths, nil
}

// Enter makes an OpenSet with Join one of a cluster that is there, and this node's. It is repeatable.
func (s *Set) Enter(cluster, node disk.ID) error {
	const op = "node.Enter"
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case !s.cluster.IsZero() && s.cluster != cluster:
		return errs.E(op, errs.Conflict, fmt.Sprintf("the drives belong to cluster %s, and the other nodes are of cluster %s", s.cluster, cluster))
	case !s.node.IsZero() && s.node != node:
		return errs.E(op, errs.Conflict, fmt.Sprintf("the drives belong to node %s", s.node))
	}
	s.cluster, s.node, s.formed = cluster, node, true
	return nil
}

// Recruit makes empty directories drives of this node. number is told them and returns their numbers, in
// their order; told again, it returns the same. A crash in the middle is completed by calling it again.
func (s *Set) Recruit(ctx context.Context, paths []string, number func(context.Context, []Newcomer) ([]uint16, error)) error {
	const op = "node.Recruit"
	node, cluster := s.Node(), s.Cluster()
	if node.IsZero() || cluster.IsZero() {
		return errs.E(op, errs.Invalid, "only a node of a cluster has drives that join it")
	}
	var list []Newcomer
	for _, path := range paths {
		if !slices.ContainsFunc(s.slots, func(sl *slot) bool { return sl.path == path }) {
			return errs.E(op, errs.NotFound, path+" is none of this process's drives: give it in the configuration, and start again")
		}
		if in := disk.Inspect(s.fs, path); in.Status != disk.Empty {
			if in.Err == nil {
				in.Err = errs.E(op, errs.Exists, fmt.Sprintf("%s is drive %d already", path, in.Identity.Num))
			}
			return errs.Wrap(op, in.Err)
		}
		b, err := s.readBelonging(path)
		if err != nil {
			return err
		}
		if b == nil {
			b = &belonging{Cluster: cluster, Node: node, Drive: disk.NewID()}
			// From here on the directory is this node's, and has its id.
			if err := s.writeBelonging(path, *b); err != nil {
				return err
			}
		}
		if b.Cluster != cluster || b.Node != node {
			return errs.E(op, errs.Conflict, fmt.Sprintf("%s was to become a drive of node %s of cluster %s: empty it to use it here", path, b.Node, b.Cluster))
		}
		n := Newcomer{Path: path, Drive: b.Drive}
		if du, err := s.fs.GetDiskUsage(path); err == nil {
			n.Capacity = du.TotalBytes
		}
		list = append(list, n)
	}
	nums, err := number(ctx, list)
	if err != nil || len(nums) != len(list) {
		if err == nil {
			err = errs.E(op, errs.Internal, "not every drive was given a number")
		}
		return errs.Wrap(op, err)
	}
	for i, n := range list {
		if err := s.Adopt(ctx, n.Path, disk.Identity{Cluster: cluster, Drive: n.Drive, Num: nums[i]}); err != nil {
			return errs.Wrap(op, err)
		}
		s.log.Info("new drive of the cluster", "path", n.Path, "drive", nums[i])
	}
	return nil
}

// NoDrives is the Set of a process without drives.
func NoDrives() *Set {
	s := &Set{o: Options{WatchEvery: -1}, fs: vfs.Default, log: slog.New(slog.DiscardHandler), byNum: map[uint16]*slot{}, gone: map[uint16]bool{}}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	return s
}
