package auth

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"hash"
	"io"
	"strings"

	"github.com/ostraka/ostraka/internal/errs"
)

// PayloadMode says how a body is protected.
type PayloadMode uint8

// The modes, by the values of x-amz-content-sha256.
const (
	ModeUnsigned                 PayloadMode = iota // UNSIGNED-PAYLOAD, presigned or anonymous
	ModeSHA256                                      // the digest of the body
	ModeStreamingSigned                             // STREAMING-AWS4-HMAC-SHA256-PAYLOAD
	ModeStreamingSignedTrailer                      // STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER
	ModeStreamingUnsignedTrailer                    // STREAMING-UNSIGNED-PAYLOAD-TRAILER
)

// Values of x-amz-content-sha256 for aws-chunked bodies.
const (
	StreamingSigned          = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD"
	StreamingSignedTrailer   = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER"
	StreamingUnsignedTrailer = "STREAMING-UNSIGNED-PAYLOAD-TRAILER"
)

func (m PayloadMode) streaming() bool { return m >= ModeStreamingSigned }
func (m PayloadMode) signedChunks() bool {
	return m == ModeStreamingSigned || m == ModeStreamingSignedTrailer
}
func (m PayloadMode) hasTrailers() bool {
	return m == ModeStreamingSignedTrailer || m == ModeStreamingUnsignedTrailer
}

// Chunked reports whether the body came in the aws-chunked encoding, which is then not part of the
// object's Content-Encoding.
func (m PayloadMode) Chunked() bool { return m.streaming() }

// parsePayload returns the mode that a value of x-amz-content-sha256 stands for.
func parsePayload(value string) (PayloadMode, *Error) {
	const op = "auth.parsePayload"
	switch value {
	case UnsignedPayload:
		return ModeUnsigned, nil
	case StreamingSigned:
		return ModeStreamingSigned, nil
	case StreamingSignedTrailer:
		return ModeStreamingSignedTrailer, nil
	case StreamingUnsignedTrailer:
		return ModeStreamingUnsignedTrailer, nil
	}
	if isHex(strings.ToLower(value), 2*sha256.Size) {
		return ModeSHA256, nil
	}
	if strings.HasPrefix(value, "STREAMING-AWS4-ECDSA-") {
		return 0, refuse(op, ReasonSignatureVersionNotSupported, "Signature Version 4A is not supported")
	}
	return 0, refuse(op, ReasonInvalidArgument, "x-amz-content-sha256 must be "+UnsignedPayload+", "+StreamingUnsignedTrailer+", "+
		StreamingSigned+", "+StreamingSignedTrailer+" or a valid sha256 value.")
}

// StripChunked takes "aws-chunked" out of a Content-Encoding: it describes the transfer, and S3 does
// not store it.
func StripChunked(contentEncoding string) string {
	var kept []string
	for e := range strings.SplitSeq(contentEncoding, ",") {
		if e = strings.Trim(e, " \t"); e != "" && !strings.EqualFold(e, "aws-chunked") {
			kept = append(kept, e)
		}
	}
	return strings.Join(kept, ",")
}

const mismatchText = "The provided 'x-amz-content-sha256' header does not match what was computed."

// bodyError says that reading the client's body failed.
func bodyError(op string, err error) *Error {
	if k := errs.KindOf(err); k != errs.Internal {
		return &Error{Reason: ReasonIncompleteBody, err: errs.As(op, k, err)}
	}
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF // nobody may take the end of a broken body for a good end
	}
	return refuseFor(op, ReasonIncompleteBody,
		"You did not provide the number of bytes specified by the Content-Length HTTP header", err)
}

// plainBody passes a body through, and verifies its length and, if there is one, its digest before
// it delivers the last bytes.
type plainBody struct {
	src   io.ReadCloser
	known bool  // the length was announced
	left  int64 // bytes to come, if known
	h     hash.Hash
	want  string
	err   error // what every later Read returns
}

func newPlainBody(src io.ReadCloser, length int64, digest string) *plainBody {
	b := &plainBody{src: src, known: length >= 0, left: length, want: digest}
	if digest != "" {
		b.h = sha256.New()
	}
	return b
}

// Read implements io.Reader.
func (b *plainBody) Read(p []byte) (int, error) {
	const op = "auth.Read"
	if b.err != nil {
		return 0, b.err
	}
	if b.known {
		if b.left == 0 {
			b.err = b.end()
			return 0, b.err
		}
		p = p[:min(int64(len(p)), b.left)]
	}
	n, err := b.src.Read(p)
	if b.h != nil {
		b.h.Write(p[:n]) //nolint:errcheck // a hash never fails
	}
	if b.known {
		b.left -= int64(n)
	}
	switch {
	case b.known && b.left == 0, !b.known && err == io.EOF:
		// All is here. What fails now must not be delivered whole, for a caller who counts bytes
		// never asks again.
		if b.err = b.end(); b.err != io.EOF {
			return 0, b.err
		}
		return n, nil
	case err != nil:
		b.err = bodyError(op, err)
		return n, b.err
	}
	return n, nil
}

// end returns io.EOF if the digest is right.
func (b *plainBody) end() error {
	if b.h != nil && !sameSignature(hex.EncodeToString(b.h.Sum(nil)), b.want) {
		return refuse("auth.Read", ReasonXAmzContentSHA256Mismatch, mismatchText)
	}
	return io.EOF
}

// Close closes the request's body.
func (b *plainBody) Close() error { return b.src.Close() }
