package auth

import (
	"crypto/subtle"
	"sync"
)

// keyCacheSize bounds each of the two generations of cached signing keys.
const keyCacheSize = 1024

// keyCache keeps signing keys, since deriving one costs four HMACs on every request. Keys enter
// after a signature made with them was verified, so strangers cannot fill it. It forgets by
// generations: when the young one is full it becomes the old one.
type keyCache struct {
	mu    sync.Mutex // guards young and old
	young map[keyID]cachedKey
	old   map[keyID]cachedKey
}

type keyID struct {
	accessKeyID string
	scope       scope
}

// cachedKey remembers the secret too: a rotated secret must not find the key of the old one.
type cachedKey struct {
	secret string
	key    []byte
}

// derive returns the signing key, from the cache or computed.
func (c *keyCache) derive(accessKeyID, secret string, s scope) []byte {
	id := keyID{accessKeyID, s}
	c.mu.Lock()
	k, ok := c.young[id]
	if !ok {
		k, ok = c.old[id]
	}
	c.mu.Unlock()
	if ok && subtle.ConstantTimeCompare([]byte(k.secret), []byte(secret)) == 1 {
		return k.key
	}
	return signingKey(secret, s)
}

// keep stores a key whose signature was verified.
func (c *keyCache) keep(accessKeyID, secret string, s scope, key []byte) {
	id := keyID{accessKeyID, s}
	c.mu.Lock()
	defer c.mu.Unlock()
	if k, ok := c.young[id]; ok && k.secret == secret {
		return
	}
	if c.young == nil || len(c.young) >= keyCacheSize {
		c.old, c.young = c.young, make(map[keyID]cachedKey)
	}
	c.young[id] = cachedKey{secret, key}
}
