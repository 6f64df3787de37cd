//go:build race

package sim

// raceEnabled tells that the race detector runs.
const raceEnabled = true
