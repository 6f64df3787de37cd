//go:build !unix || race

package bufpool

func mapMemory(size int) []byte { return heapMemory(size) }

func unmapMemory([]byte) {}
