package placement

import (
	"fmt"

	"github.com/ostraka/ostraka/internal/errs"
)

// Succeeding returns l with the number after that of before, whose drives it has, all of them and as they are. It is for a
// cluster by whose layout nothing was stored yet: partitions begin at epoch 1 once more.
func (l *Layout) Succeeding(before *Layout) (*Layout, error) {
	const op = "placement.Succeeding"
	if len(l.drives) != len(before.drives) {
		return nil, errs.E(op, errs.Invalid, fmt.Sprintf("the new layout has %d drives, and there are %d", len(l.drives), len(before.drives)))
	}
	for i := range l.drives {
		if l.drives[i] != before.drives[i] {
			return nil, errs.E(op, errs.Invalid, fmt.Sprintf("drive %d is another in the new layout", before.drives[i].Num))
		}
	}
	n := *l
	n.number = before.number + 1
	return &n, nil
}
