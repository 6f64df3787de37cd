package disk

import (
	"github.com/ostraka/ostraka/internal/errs"
	"github.com/ostraka/ostraka/metadata"
)

type acceptor interface{ metadata.Replica }

func newAcceptor(metadata.AcceptorConfig) (acceptor, error) {
	return nil, errs.E("disk.Open", errs.Unsupported, "no acceptor yet")
}
