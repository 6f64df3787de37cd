package main

import (
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"github.com/ostraka/ostraka/disk"
	"github.com/ostraka/ostraka/internal/config"
	"github.com/ostraka/ostraka/internal/errs"
)

func TestOneClusterIsMadeWithASecret(t *testing.T) {
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	cfg := &config.Server{Cluster: config.Cluster{NodeAddress: "127.0.0.1:7000"}}
	if err := mayForm(cfg); !errs.Is(err, errs.Invalid) {
		t.Errorf("without a secret: %v", err)
	}
	cfg.SecretFile = filepath.Join(t.TempDir(), "secret")
	if err := mayForm(cfg); err != nil {
		t.Errorf("with a new one: %v", err)
	}
	first, second := disk.NewID(), disk.NewID()
	for range 2 { // it goes on after a crash
		if err := noteCluster(cfg, first, log); err != nil {
			t.Fatal(err)
		}
	}
	if err := mayForm(cfg); !errs.Is(err, errs.Precondition) {
		t.Errorf("a second cluster, as its disks are not mounted: %v", err)
	}
	if err := noteCluster(cfg, second, log); !errs.Is(err, errs.Precondition) {
		t.Errorf("a store that becomes another cluster: %v", err)
	}
	if err := os.Remove(noteOf(cfg)); err != nil {
		t.Fatal(err)
	}
	if err := mayForm(cfg); err != nil {
		t.Errorf("after the note is gone: %v", err)
	}
	if err := mayForm(&config.Server{}); err != nil {
		t.Errorf("a process that is alone: %v", err)
	}
}
