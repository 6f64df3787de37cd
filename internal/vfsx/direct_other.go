//go:build !linux

package vfsx

import "errors"

// Direct I/O is used on Linux only; elsewhere the probe fails and files are buffered.
func probeDirect(string) bool { return false }

func createDirect(string, int64) (Writer, error) { return nil, errors.ErrUnsupported }

func openDirect(string) (Reader, error) { return nil, errors.ErrUnsupported }
