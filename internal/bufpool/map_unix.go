//go:build unix && !race

package bufpool

import "syscall"

// mapMemory returns size bytes of fresh, zeroed, page-aligned memory outside the Go heap. When the
// system refuses (limit on mappings), the heap serves.
func mapMemory(size int) []byte {
	mem, err := syscall.Mmap(-1, 0, size, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_ANON|syscall.MAP_PRIVATE)
	if err != nil {
		return heapMemory(size)
	}
	return mem
}

// unmapMemory gives memory of mapMemory back. Memory from the heap is not known to Munmap, which
// then refuses it; the garbage collector takes that.
func unmapMemory(mem []byte) { _ = syscall.Munmap(mem) }
