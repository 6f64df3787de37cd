package auth

import (
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"hash"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
)

const (
	// maxChunkLine bounds a chunk's first line: 16 hex digits, the signature and CRLF need 99.
	maxChunkLine = 128
	// minChunk is the least size of a chunk that another one follows (S3: InvalidChunkSizeError).
	minChunk = 8 << 10
	// maxTrailers bounds all trailers together.
	maxTrailers = 8 << 10
	// chunkBuffer is all the memory that a chunked body takes, whatever the size of its chunks:
	// some SDKs send the whole object as one.
	chunkBuffer = 16 << 10

	trailerSignature = "x-amz-trailer-signature"
)

// chunkSignature is the chain of chunk signatures.
type chunkSignature struct {
	key      []byte
	time     string
	scope    string
	previous string // of the request, then of the chunk before
}

// verify checks the signature of a chunk by its digest, and moves the chain on.
func (c *chunkSignature) verify(digest, declared string) bool {
	return c.advance("AWS4-HMAC-SHA256-PAYLOAD\n"+c.time+"\n"+c.scope+"\n"+c.previous+"\n"+emptySHA256+"\n"+digest, declared)
}

// verifyTrailer checks the signature of the trailers by the digest of their canonical form.
func (c *chunkSignature) verifyTrailer(digest, declared string) bool {
	return c.advance("AWS4-HMAC-SHA256-TRAILER\n"+c.time+"\n"+c.scope+"\n"+c.previous+"\n"+digest, declared)
}

func (c *chunkSignature) advance(toSign, declared string) bool {
	c.previous = signature(c.key, toSign)
	return sameSignature(c.previous, declared)
}

// chunkedBody decodes aws-chunked. Bytes of a chunk are delivered as they come, before the chunk's
// signature can be known, except the last ones of each chunk; the last ones of the body wait until
// the final chunk, the trailers and the end of the source have been verified too.
type chunkedBody struct {
	src io.ReadCloser
	br  *bufio.Reader

	left     int64 // decoded bytes to come in all
	chunk    int64 // decoded bytes to come of this chunk
	short    bool  // this chunk, or the one before, is below minChunk
	sig      *chunkSignature
	h        hash.Hash // of the chunk; nil if chunks are not signed
	declared string    // signature of the chunk

	trailer   bool // trailers may follow
	announced []string
	trailers  http.Header
	err       error // what every later Read returns
}

// newChunkedBody returns the decoder of src. sig is nil if chunks are not signed.
func newChunkedBody(src io.ReadCloser, length int64, sig *chunkSignature, trailer bool, announced []string) *chunkedBody {
	b := &chunkedBody{src: src, br: bufio.NewReaderSize(src, chunkBuffer), left: length, sig: sig, trailer: trailer, announced: announced}
	if sig != nil {
		b.h = sha256.New()
	}
	return b
}

// Trailers returns the trailers, once the whole body is verified.
func (b *chunkedBody) Trailers() http.Header {
	if b.err != io.EOF {
		return nil
	}
	return b.trailers
}

// Close closes the request's body.
func (b *chunkedBody) Close() error { return b.src.Close() }

// Read implements io.Reader.
func (b *chunkedBody) Read(p []byte) (int, error) {
	if b.err != nil {
		return 0, b.err
	}
	if len(p) == 0 && b.left > 0 {
		return 0, nil
	}
	if b.left == 0 {
		b.err = b.finish()
		return 0, b.err
	}
	if b.chunk == 0 {
		if err := b.next(); err != nil {
			b.err = err
			return 0, b.err
		}
	}
	n, err := b.br.Read(p[:min(int64(len(p)), b.chunk)])
	if b.h != nil {
		b.h.Write(p[:n]) //nolint:errcheck // a hash never fails
	}
	b.chunk -= int64(n)
	b.left -= int64(n)
	if err != nil && b.chunk > 0 {
		b.err = bodyError("auth.Read", err)
		return n, b.err
	}
	if b.chunk == 0 {
		if err := b.endChunk(); err != nil {
			b.err = err
			return 0, b.err
		}
	}
	if b.left == 0 {
		if b.err = b.finish(); b.err != io.EOF {
			return 0, b.err
		}
	}
	return n, nil
}

// next reads the first line of a data chunk.
func (b *chunkedBody) next() error {
	size, err := b.line()
	switch {
	case err != nil:
		return err
	case size == 0 || size > b.left:
		return incomplete("the chunks do not add up to x-amz-decoded-content-length")
	case b.short:
		return refuse("auth.Read", ReasonInvalidChunkSize, "Only the last chunk is allowed to have a size less than 8192 bytes")
	}
	b.chunk, b.short = size, size < minChunk
	return nil
}

// endChunk reads the end of a data chunk and verifies its signature.
func (b *chunkedBody) endChunk() error {
	if err := b.crlf(); err != nil {
		return err
	}
	return b.verifyChunk()
}

func (b *chunkedBody) verifyChunk() error {
	if b.sig == nil {
		return nil
	}
	digest := hex.EncodeToString(b.h.Sum(nil))
	b.h.Reset()
	if !b.sig.verify(digest, b.declared) {
		return refuse("auth.Read", ReasonSignatureDoesNotMatch, "The signature of a chunk does not match")
	}
	return nil
}

// finish reads the final chunk, the trailers and the end of the source. It returns io.EOF if all is well.
func (b *chunkedBody) finish() error {
	size, err := b.line()
	if err != nil {
		return err
	}
	if size != 0 {
		return incomplete("the chunks do not add up to x-amz-decoded-content-length")
	}
	if err := b.verifyChunk(); err != nil {
		return err
	}
	if b.trailer {
		return b.readTrailers()
	}
	if err := b.crlf(); err != nil {
		return err
	}
	switch _, err := b.br.ReadByte(); {
	case err == nil:
		return incomplete("there is data after the last chunk")
	case err != io.EOF:
		return bodyError("auth.Read", err)
	}
	return io.EOF
}

// line reads the first line of a chunk: its size and, if chunks are signed, its signature.
func (b *chunkedBody) line() (size int64, err error) {
	raw, e := b.br.ReadSlice('\n')
	if errors.Is(e, bufio.ErrBufferFull) || len(raw) > maxChunkLine {
		return 0, incomplete("the first line of a chunk is too long")
	}
	if e != nil {
		return 0, bodyError("auth.Read", e)
	}
	text, ok := strings.CutSuffix(string(raw), "\r\n")
	if !ok {
		return 0, incomplete("the first line of a chunk does not end in CRLF")
	}
	if b.sig != nil {
		var sig string
		text, sig, ok = strings.Cut(text, ";chunk-signature=")
		if !ok || !isHex(sig, signatureLen) {
			return 0, incomplete("a chunk has no valid chunk-signature")
		}
		b.declared = sig
	}
	// No sign, no leading zero, no extension: one size has one text.
	if text == "" || len(text) > 1 && text[0] == '0' || strings.Trim(text, "0123456789abcdefABCDEF") != "" {
		return 0, incomplete("a chunk has no valid size")
	}
	n, e := strconv.ParseUint(text, 16, 63)
	if e != nil {
		return 0, incomplete("a chunk has no valid size")
	}
	return int64(n), nil
}

// crlf reads the two bytes that end a chunk.
func (b *chunkedBody) crlf() error {
	for _, want := range []byte("\r\n") {
		c, err := b.br.ReadByte()
		if err != nil {
			return bodyError("auth.Read", err)
		}
		if c != want {
			return incomplete("a chunk does not end in CRLF")
		}
	}
	return nil
}

// readTrailers reads to the end of the source. Lines may end in CRLF or LF and empty lines may lie
// between them, for clients differ in that; which trailers come, and that all do, is strict.
func (b *chunkedBody) readTrailers() error {
	raw, err := io.ReadAll(io.LimitReader(b.br, maxTrailers+1))
	if err != nil {
		return bodyError("auth.Read", err)
	}
	if len(raw) > maxTrailers {
		return badTrailer("the trailers are too long")
	}
	text, ok := strings.CutSuffix(string(raw), "\n")
	if !ok {
		return incomplete("the body ends within its trailers")
	}
	trailers := make(http.Header)
	var canonical strings.Builder
	declared := ""
	for line := range strings.SplitSeq(text, "\n") {
		line = strings.TrimSuffix(line, "\r")
		if line == "" {
			continue
		}
		name, value, ok := strings.Cut(line, ":")
		name, value = strings.ToLower(name), strings.Trim(value, " \t")
		switch {
		case !ok || declared != "":
			return badTrailer("a line of the trailers is not of the form name:value")
		case b.sig != nil && name == trailerSignature:
			if !isHex(value, signatureLen) {
				return badTrailer("the trailer signature is malformed")
			}
			declared = value
		case !slices.Contains(b.announced, name) || trailers.Get(name) != "" || value == "" || strings.ContainsAny(value, "\r\x00"):
			return badTrailer("a trailer was not announced by x-amz-trailer, comes twice or has no value")
		default:
			trailers.Set(name, value)
			canonical.WriteString(name + ":" + value + "\n")
		}
	}
	if len(trailers) != len(b.announced) {
		return badTrailer("a trailer that x-amz-trailer announced is missing")
	}
	if b.sig != nil && !b.sig.verifyTrailer(HashPayload([]byte(canonical.String())), declared) {
		return refuse("auth.Read", ReasonSignatureDoesNotMatch, "The signature of the trailers does not match")
	}
	b.trailers = trailers
	return io.EOF
}

func incomplete(what string) error {
	return refuse("auth.Read", ReasonIncompleteBody, "The request body terminated unexpectedly: "+what)
}

func badTrailer(what string) error {
	return refuse("auth.Read", ReasonMalformedTrailer,
		"The request contained trailing data that was not well-formed or did not conform to our published schema: "+what)
}
