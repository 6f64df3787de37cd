package integration

import (
	"bytes"
	"io"
	"testing"
	"testing/iotest"
)

func TestTheBodiesOfTheLoadRepeatThemselves(t *testing.T) {
	b := newBody(7, 1003)
	whole := b.bytes()
	slow, err := io.ReadAll(iotest.OneByteReader(newBody(7, 1003)))
	if err != nil || !bytes.Equal(whole, slow) {
		t.Errorf("read byte by byte the stream differs (%d bytes, %v)", len(slow), err)
	}
	if _, err := b.Seek(501, io.SeekStart); err != nil {
		t.Fatal(err)
	}
	tail, err := io.ReadAll(b)
	if err != nil || !bytes.Equal(tail, whole[501:]) {
		t.Errorf("from the middle the stream differs (%d bytes, %v)", len(tail), err)
	}
	if bytes.Equal(whole, newBody(8, 1003).bytes()) {
		t.Error("two seeds give the same stream")
	}
}
