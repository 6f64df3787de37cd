package bufpool

import "unsafe"

// heapMemory returns size bytes of the Go heap that start at a multiple of Page.
func heapMemory(size int) []byte {
	mem := make([]byte, size+Page)
	skip := int(-uintptr(unsafe.Pointer(unsafe.SliceData(mem))) & (Page - 1))
	return mem[skip : skip+size : skip+size]
}
