// Package integration drives the real binary from outside, as its users do: real clients against
// real processes on the loopback interface, with drives taken away, processes killed and bytes
// flipped. It imports nothing of the project, so that it sees only what a user sees.
//
// Flags behind -args: -ostraka PATH tests that binary instead of building one, -long runs the
// cases that take minutes or gigabytes, -require-aws fails where the aws CLI is missing, -seed N
// repeats a random run (each run prints its seed).
//
// Nothing here sleeps for a guessed time: what has to happen is polled with a deadline. Processes
// are ended by the id of those that were started here.
package integration
