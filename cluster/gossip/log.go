package gossip

import (
	"bytes"
	"log/slog"
	"regexp"
	"strings"
	"sync"
	"time"
)

// serfLog passes serf's own lines on at debug level. A line that says that somebody speaks under another key is
// a warning, once an hour: it is what an operator looks for when a node does not appear.
type serfLog struct {
	log *slog.Logger
	now func() time.Time

	mu     sync.Mutex // guards below
	warned time.Time
}

const (
	maxLine   = 1024 // bytes of a line
	warnEvery = time.Hour
)

// memberlist has no error value for it, only these texts; they decide nothing but what is logged.
var foreignKey = []string{"no installed keys could decrypt", "encryption is configured but remote state is not encrypted", "remote state is encrypted and"}

var fromAddress = regexp.MustCompile(`from=(\S+)`)

// Write takes one line.
func (l *serfLog) Write(line []byte) (int, error) {
	text := strings.TrimSpace(string(bytes.ToValidUTF8(line[:min(len(line), maxLine)], nil)))
	if wrongKey(text) {
		l.warn(text)
	}
	l.log.Debug(text)
	return len(line), nil
}

// wrongKey reports whether a text says that two sides have different keys.
func wrongKey(text string) bool {
	text = strings.ToLower(text)
	for _, s := range foreignKey {
		if strings.Contains(text, s) {
			return true
		}
	}
	return false
}

func (l *serfLog) warn(text string) {
	now := l.now()
	l.mu.Lock()
	quiet := !l.warned.IsZero() && now.Sub(l.warned) < warnEvery
	if !quiet {
		l.warned = now
	}
	l.mu.Unlock()
	if quiet {
		return
	}
	from := "unknown"
	if m := fromAddress.FindStringSubmatch(text); m != nil {
		from = m[1]
	}
	l.log.Warn("gossip under another key is not admitted: a process of another cluster, or one that has missed a change of the key", "from", from)
}
