package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"text/tabwriter"
)

const (
	nodes   = 4
	profile = "2+2"
)

// phase is what `ostraka bench --json` says of one phase.
type phase struct {
	Op        string    `json:"op"`
	Errors    int       `json:"errors"`
	Ops       int       `json:"ops"`
	PerSecond float64   `json:"per_second"`
	CPU       float64   `json:"server_cpu_us_per_op"`
	ByPID     []float64 `json:"server_cpu_us_per_op_by_pid"`
	P50       float64   `json:"p50_us"`
}

// compare prints the CPU of each operation in one process and through a gateway and nodes, size by size, the two in turn.
func compare(ctx context.Context, binary, dir string, sizes, args []string) (err error) {
	b := &bed{binary: binary, dir: dir}
	defer func() { err = errors.Join(err, b.end()) }()
	one, err := b.alone(ctx, nodes, "--profile", profile)
	if err != nil {
		return err
	}
	many, err := b.cluster(ctx, nodes, profile)
	if err != nil {
		return err
	}
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintf(w, "server CPU per operation: one process with %d drives, and a gateway and %d nodes with one each, profile %s\n", nodes, nodes, profile)
	fmt.Fprintf(w, "operation\tsize\tone process\tcluster\t= gateway\t+ nodes\tcluster ÷ one\tops/s\tcluster ops/s\tp50\tcluster p50\terrors\t\n")
	for _, size := range sizes {
		was, err := b.phases(ctx, one, size, args)
		if err != nil {
			return err
		}
		is, err := b.phases(ctx, many, size, args)
		if err != nil {
			return err
		}
		for i, p := range is {
			if i >= len(was) || was[i].Op != p.Op || len(p.ByPID) != nodes+1 {
				return errors.New("ostraka bench did not measure what was asked for")
			}
			ratio := "–"
			if was[i].CPU > 0 {
				ratio = fmt.Sprintf("%.2f", p.CPU/was[i].CPU)
			}
			fmt.Fprintf(w, "%s\t%s\t%.0f µs\t%.0f µs\t%.0f µs\t%.0f µs\t%s\t%.0f\t%.0f\t%.1f ms\t%.1f ms\t%d\t\n", p.Op, size, was[i].CPU, p.CPU, p.ByPID[0], p.CPU-p.ByPID[0],
				ratio, was[i].PerSecond, p.PerSecond, was[i].P50/1e3, p.P50/1e3, was[i].Errors+p.Errors)
		}
	}
	return w.Flush()
}

// phases loads a store with objects of one size.
func (b *bed) phases(ctx context.Context, s *store, size string, args []string) ([]phase, error) {
	load := b.load(ctx, s, append([]string{"--duration", "3s", "--json", "--sizes", size}, args...))
	var out bytes.Buffer
	load.Stdout = &out
	if err := load.Run(); err != nil {
		return nil, err
	}
	var report struct {
		Results []phase `json:"results"`
	}
	if err := json.Unmarshal(out.Bytes(), &report); err != nil {
		return nil, err
	}
	return report.Results, nil
}
