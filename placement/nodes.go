package placement

import (
	"fmt"
	"slices"

	"github.com/ostraka/ostraka/internal/errs"
)

// WithNode returns the next layout, in which drives belong to a node and its zone. Who is a member of
// what stays, and so do quorums: they follow from the spread that each partition was given. The error is
// of kind NotFound if a drive is not in the layout.
func (l *Layout) WithNode(nums []uint16, node [16]byte, zone string) (*Layout, error) {
	n := l.next()
	n.drives = slices.Clone(l.drives)
	for _, num := range nums {
		i, ok := l.search(num)
		if !ok {
			return nil, errs.E("placement.WithNode", errs.NotFound, fmt.Sprintf("drive %d is not in the layout", num))
		}
		n.drives[i].Node, n.drives[i].Zone = node, zone
	}
	return n, nil
}
