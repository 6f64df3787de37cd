package main

import (
	"time"

	"github.com/spf13/cobra"

	"github.com/ostraka/ostraka/internal/bench"
	"github.com/ostraka/ostraka/internal/config"
	"github.com/ostraka/ostraka/internal/errs"
)

func benchCommand(p process) *cobra.Command {
	var e endpoint
	o := bench.Options{}
	var sizes []string
	var asJSON bool
	c := &cobra.Command{
		Use:   "bench",
		Short: "Load an S3 endpoint, and print rates, latencies and server CPU per operation",
		Long: `Runs PUT, GET, HEAD, LIST and DELETE for each size against any S3 endpoint, and removes what it
wrote. With --server-pid (on the server's machine) it prints the CPU time that each operation cost
the server, and with --floor-dir what the stages of the work cost by themselves on this machine.`,
		Example: `  ostraka bench --server-pid $(pidof ostraka) --floor-dir data/d1
  ostraka bench --endpoint https://s3.example.net --region eu-west-1 --sizes 1MiB --duration 30s`,
		Args: exactly(0, "bench takes flags only"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := e.keys(); err != nil {
				return err
			}
			for _, s := range sizes {
				var z config.Size
				if err := z.UnmarshalText([]byte(s)); err != nil {
					return err
				}
				o.Sizes = append(o.Sizes, int64(z))
			}
			o.Endpoint, o.AccessKey, o.SecretKey, o.Region = e.url, e.access, e.secret, e.region
			o.Floor = o.FloorDir != ""
			if o.Seed == 0 {
				o.Seed = uint64(time.Now().UnixNano())
			}
			report, err := bench.Run(cmd.Context(), o)
			if err != nil {
				return errs.Wrap("bench", err)
			}
			if asJSON {
				return report.JSON(p.stdout)
			}
			return report.Print(p.stdout)
		},
	}
	e.flags(c, p)
	fs := c.Flags()
	fs.StringVar(&o.Bucket, "bucket", "ostraka-bench", "`BUCKET` to use; made if absent; only objects under bench- are touched")
	fs.StringSliceVar(&sizes, "sizes", []string{"4KiB", "1MiB", "64MiB"}, "`SIZES` of the objects")
	fs.DurationVar(&o.Duration, "duration", 10*time.Second, "`TIME` of each phase")
	fs.IntVar(&o.MaxOps, "max-ops", 100000, "most operations of a phase")
	fs.IntVar(&o.Clients, "clients", 0, "concurrent clients; 0 chooses by size")
	fs.IntSliceVar(&o.PIDs, "server-pid", nil, "`PIDS` of the server's processes on this machine")
	fs.StringVar(&o.FloorDir, "floor-dir", "", "`DIR` on the drives' file system for measuring the floor; empty: no floor")
	fs.Uint64Var(&o.Seed, "seed", 0, "seed of bodies and orders; 0 takes one from the time")
	fs.BoolVar(&asJSON, "json", false, "print JSON")
	return c
}
