// Package node carries drives to those who use them. [Drive] is what gateways and repair need of a
// drive, wherever it is; [Set] owns the drives of this process: it forms a new cluster over empty
// directories, opens them, notices when one goes away, and opens it again when it is back.
//
// The package decides nothing about records or placement, and it never formats a directory that
// holds anything.
//
// # Forming
//
// Over directories that are all empty, OpenSet draws the ids of a cluster and of its drives, and
// writes to each its identity, marked as forming, with the whole founding set. When a crash leaves some
// of them written, the next OpenSet finds the founding set in any of them and gives the remaining
// identities to the remaining empty directories: the same forming, completed. The caller ends it with
// MarkFormed once the control plane has its first state; a drive that is still forming beside a formed
// one of the same founding is marked with it.
//
// A directory that is empty beside a formed cluster is taken for a missing mount, and is left alone.
//
// # Loss and return
//
// One goroutine per directory looks at it every second, and at once when its drive reports a fault. A
// drive whose directory vanished or is another one is closed, and reported as lost; when the
// directory is back with the same identity, the drive is opened again and reported as returned. A
// drive that was quarantined for a failed write, though its directory was there all the time, stays
// out until its directory went away and came back, or until Reopen: a failed sync is not healed by
// trying again. A drive that ran out of space is opened again once there is space.
//
// # Goroutines
//
// One watcher per directory, owned by the Set, and those of the drives themselves.
package node
