//go:build linux

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// FS_IOC_SHUTDOWN of linux/fs.h, _IOR('X', 125, __u32), and its mode that drops the journal's
// running transaction: EXT4_GOING_FLAGS_NOLOGFLUSH of fs/ext4/ext4.h.
const (
	fsIocShutdown   = 0x8004587d
	goingNoLogFlush = 2
)

// unmountPatience is how long a file system may be held after its server was killed, or after a
// living server was to let go of it.
const unmountPatience = 30 * time.Second

// drive is one ext4 file system in a file, behind a loop device.
type drive struct {
	image string
	point string   // where it is mounted
	loop  *os.File // detaches the device when closed, unless it is mounted
	up    bool     // mounted
}

// newDrive makes the image and its device. The file system comes with format.
func newDrive(dir string, i int, size int64) (*drive, error) {
	name := "d" + strconv.Itoa(i+1)
	d := &drive{image: filepath.Join(dir, name+".img"), point: filepath.Join(dir, name)}
	f, err := os.Create(d.image)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		return nil, err
	}
	if err := os.Mkdir(d.point, 0o755); err != nil {
		return nil, err
	}
	d.loop, err = attach(f, d.image)
	return d, err
}

// attach puts a free loop device before the file. Others may take the free one first.
func attach(f *os.File, name string) (*os.File, error) {
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer control.Close()
	for try := 0; ; try++ {
		n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, fmt.Errorf("a free loop device: %w", err)
		}
		path := "/dev/loop" + strconv.Itoa(n)
		if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) {
			if err := unix.Mknod(path, unix.S_IFBLK|0o600, int(unix.Mkdev(7, uint32(n)))); err != nil {
				return nil, fmt.Errorf("mknod %s: %w", path, err)
			}
		}
		loop, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			return nil, err
		}
		c := unix.LoopConfig{Fd: uint32(f.Fd())}
		c.Info.Flags = unix.LO_FLAGS_AUTOCLEAR
		copy(c.Info.File_name[:len(c.Info.File_name)-1], name)
		err = unix.IoctlLoopConfigure(int(loop.Fd()), &c)
		if err == nil {
			return loop, nil
		}
		loop.Close()
		if !errors.Is(err, unix.EBUSY) || try == 20 {
			return nil, fmt.Errorf("attach %s: %w", path, err)
		}
	}
}

// format makes an empty file system; everything is written now and nothing later.
func (d *drive) format(ctx context.Context) error {
	cmd := exec.CommandContext(ctx, "mkfs.ext4", "-q", "-F", "-b", "4096", "-J", "size=16", "-i", "32768", "-m", "0",
		"-E", "lazy_itable_init=0,lazy_journal_init=0", d.loop.Name())
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("mkfs.ext4: %w: %s", err, bytes.TrimSpace(out))
	}
	return nil
}

// mount replays the journal, if there is anything in it.
func (d *drive) mount() error {
	if err := unix.Mount(d.loop.Name(), d.point, "ext4", unix.MS_NOATIME, "errors=remount-ro"); err != nil {
		return fmt.Errorf("mount %s: %w", d.image, err)
	}
	d.up = true
	return nil
}

// cut shuts the file system down at once: what is not on the device stays away from it.
func cut(point *os.File) error {
	mode := uint32(goingNoLogFlush)
	_, _, no := unix.Syscall(unix.SYS_IOCTL, point.Fd(), fsIocShutdown, uintptr(unsafe.Pointer(&mode)))
	if no != 0 {
		return fmt.Errorf("FS_IOC_SHUTDOWN of %s: %w", point.Name(), no)
	}
	return nil
}

// breakDown makes the file system find an error in itself, upon which it goes read-only.
func (d *drive) breakDown() error {
	return os.WriteFile(filepath.Join("/sys/fs/ext4", filepath.Base(d.loop.Name()), "trigger_fs_error"), []byte("power\n"), 0)
}

// String is where it is mounted and how full it is.
func (d *drive) String() string {
	var st unix.Statfs_t
	if !d.up || unix.Statfs(d.point, &st) != nil {
		return d.point + " is not mounted"
	}
	return fmt.Sprintf("%s has %d of %d MiB free", d.point, int64(st.Bavail)*st.Bsize>>20, int64(st.Blocks)*st.Bsize>>20)
}

// unmount waits until nobody holds the file system, and drops what the kernel has cached of the
// device.
func (d *drive) unmount() error {
	if !d.up {
		return nil
	}
	deadline := time.Now().Add(unmountPatience)
	for {
		err := unix.Unmount(d.point, 0)
		if err == nil {
			break
		}
		if !errors.Is(err, unix.EBUSY) || time.Now().After(deadline) {
			return fmt.Errorf("unmount %s: %w", d.point, err)
		}
		time.Sleep(5 * time.Millisecond)
	}
	d.up = false
	if err := unix.IoctlSetInt(int(d.loop.Fd()), unix.BLKFLSBUF, 0); err != nil {
		return fmt.Errorf("BLKFLSBUF of %s: %w", d.loop.Name(), err)
	}
	return nil
}

// release ends everything of the drive but its image. A mount that is still held goes with its
// holders.
func (d *drive) release() error {
	var list []error
	if err := d.unmount(); err != nil {
		list = append(list, err, unix.Unmount(d.point, unix.MNT_DETACH))
	}
	if d.loop != nil {
		list = append(list, d.loop.Close())
		d.loop = nil
	}
	return errors.Join(list...)
}

// method checks on one drive, freshly formatted and mounted, that a cut loses what was not synced
// and nothing else.
func (d *drive) method() error {
	synced, loose := filepath.Join(d.point, "synced"), filepath.Join(d.point, "loose")
	if err := write(synced, true); err != nil {
		return err
	}
	if err := write(loose, false); err != nil {
		return err
	}
	f, err := os.Open(d.point)
	if err != nil {
		return err
	}
	err = cut(f)
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := errors.Join(d.unmount(), d.mount()); err != nil {
		return err
	}
	if b, err := os.ReadFile(synced); err != nil || string(b) != witness {
		return fmt.Errorf("a synced file is not whole after the cut: %d bytes, %v", len(b), err)
	}
	if b, err := os.ReadFile(loose); err == nil && string(b) == witness {
		return errors.New("a file that was not synced has survived the cut: it shows nothing")
	}
	return nil
}

const witness = "what was synced survives"

func write(path string, sync bool) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	_, err = f.WriteString(witness)
	if err == nil && sync {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil || !sync {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}
