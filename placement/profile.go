package placement

import "github.com/ostraka/ostraka/erasure"

// profile makes a profile of k data and m parity shards.
func profile(k, m int) erasure.Profile { return erasure.Profile{Data: uint8(k), Parity: uint8(m)} }
