// Command powercut shows what an S3 server keeps when the power goes: what `make powercut` runs.
//
// It makes ext4 file systems on loop devices, starts a server over them, loads it from several
// clients, and keeps a ledger of what was acknowledged. Then, at nearly the same instant, every file
// system is shut down without flushing its journal (FS_IOC_SHUTDOWN with NOLOGFLUSH) and the server
// is killed. What was not synced is gone then, as after a power cut. The file systems are mounted
// again, which replays their journals, the server is started, and everything is compared:
//
//   - an acknowledged body reads back byte for byte; an acknowledged delete stays deleted; an
//     acknowledged bucket is there
//   - of a request without an answer, the key holds the whole old or the whole new state
//   - the listing says what the reads say
//
// Some cuts come while the server forms its store or starts after a cut. A second sort of round
// takes one drive from the server while it lives, by the same ioctl or by a remount read-only after
// an error: the load has to go on, without a false acknowledgement; then the drive is mounted again
// and has to be taken back.
//
// It is a file system's shutdown and not a disk's: whether flushes reach the device is not seen here.
// Each run begins with a check of the method itself: a file that was not synced has to be gone.
//
// Any S3 server can be run, so that stores can be compared:
//
//	powercut -cuts 50 -server 'other-server --listen {address} {drives}'
//
// The command is given to /bin/sh; {drives} are the mount points, separated by spaces, {address} is host:port,
// {access} and {secret} are the root keys, which OSTRAKA_ROOT_ACCESS_KEY and OSTRAKA_ROOT_SECRET_KEY hold too.
// What only the default server promises is not asked of others. It imports nothing of the project. It needs Linux, root, loop devices and mkfs.ext4, and ends with status 3
// and one line where they are not to be had; with 1 when anything was lost, 2 for wrong arguments.
//
// All mounts are in a mount namespace of the run and the loop devices detach themselves on last
// close, so that nothing is left behind however the run ends, SIGKILL included, but the directory of
// the images, which is removed unless the run itself is killed with SIGKILL.
package main
