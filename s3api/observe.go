package s3api

import (
	"context"
	"time"
)

// Record is what is known of a request once it has been answered: for metrics and the access
// log. It holds no secret: no header, no signature, no query.
type Record struct {
	RequestID  string
	Operation  string // name in the table of operations; "" when the request named none
	Method     string
	Bucket     string
	Key        string
	VersionID  string // asked for
	Status     int
	Code       string // S3 error code, "" on success
	BytesIn    int64  // body bytes read, as sent
	BytesOut   int64  // body bytes written
	Start      time.Time
	FirstByte  time.Duration // until the head of the answer was ready
	Duration   time.Duration
	Account    string // canonical id; "" when anonymous or not authenticated
	Principal  string // ARN
	AccessKey  string // the id, never the secret
	RemoteAddr string
	Host       string
	UserAgent  string
	TLS        bool
	Err        error // the cause of a failure, for the log
}

// Observer learns of every request that was answered, on the request's goroutine, after the
// answer; it must not block.
type Observer interface {
	Observe(ctx context.Context, r *Record)
}
