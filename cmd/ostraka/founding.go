package main

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"strings"

	"github.com/ostraka/ostraka/disk"
	"github.com/ostraka/ostraka/internal/config"
	"github.com/ostraka/ostraka/internal/errs"
)

// A node that starts again without its disks must not take itself for the first of a new cluster, with the secret and at the address
// of the one that it belongs to: others would join it, and clients would find no buckets. So which cluster was made with
// a secret is noted beside it, in a file with the id of the cluster.

func noteOf(cfg *config.Server) string { return cfg.SecretFile + ".cluster" }

// notedCluster returns the cluster that was made with the secret here; "": none is known.
func notedCluster(cfg *config.Server) (string, error) {
	raw, err := os.ReadFile(noteOf(cfg))
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", &errs.Error{Op: "server", Kind: errs.Invalid, Msg: "which cluster was made with the secret cannot be read", Err: err}
	}
	return strings.TrimSpace(string(raw)), nil
}

// mayForm is asked before a store is made of empty directories.
func mayForm(cfg *config.Server) error {
	if !cfg.InCluster() {
		return nil
	}
	if cfg.SecretFile == "" {
		return errs.E("server", errs.Invalid, "all directories are empty. If this node had drives, their disks are not mounted. To make a cluster --cluster-secret-file is needed: "+
			"a file that is not there is made, with a new secret; to join one --join is needed as well")
	}
	was, err := notedCluster(cfg)
	if err == nil && was != "" {
		err = errs.E("server", errs.Precondition, fmt.Sprintf("all directories are empty, and cluster %s was made with this secret: are their disks mounted? If they are lost, join that cluster with --join, at another --node-address. "+
			"To make another cluster give another --cluster-secret-file, or remove %s", was, noteOf(cfg)))
	}
	return err
}

// noteCluster writes the note, when the drives are formatted and before anything of the cluster can be used.
func noteCluster(cfg *config.Server, id disk.ID, log *slog.Logger) error {
	was, err := notedCluster(cfg)
	switch {
	case err != nil:
		return err
	case was == id.String():
		return nil
	case was != "":
		return errs.E("server", errs.Precondition, fmt.Sprintf("cluster %s was made with this secret, and these drives are of %s: give another --cluster-secret-file", was, id))
	}
	if err := makeFile(noteOf(cfg), id.String()+"\n"); err != nil {
		log.Warn("which cluster was made with the secret could not be noted beside it: started without its disks, this node would make another one", "file", noteOf(cfg), "err", err)
	}
	return nil
}

// noteLate writes the note where it is missing at a start with the secret: the cluster was made by a build that wrote none.
func noteLate(cfg *config.Server, id disk.ID, log *slog.Logger) {
	if cfg.SecretFile == "" || len(cfg.Join) > 0 {
		return
	}
	if _, err := os.Stat(cfg.SecretFile); err != nil {
		return
	}
	if was, err := notedCluster(cfg); err != nil || was != "" {
		return
	}
	if err := makeFile(noteOf(cfg), id.String()+"\n"); err != nil {
		log.Debug("which cluster was made with the secret could not be noted beside it", "err", err)
	}
}
