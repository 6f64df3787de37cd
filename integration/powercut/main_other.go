//go:build !linux

package main

import (
	"fmt"
	"os"
)

func main() {
	fmt.Fprintln(os.Stderr, "powercut: not possible here: it needs Linux")
	os.Exit(3)
}
