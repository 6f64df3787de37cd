package integration

import (
	// What functional_tests.go of minio-go is built from: named here, so that go.mod and go.sum
	// keep it.
	_ "github.com/dustin/go-humanize"
	_ "github.com/google/uuid"
	_ "github.com/minio/minio-go/v7"
	_ "github.com/minio/minio-go/v7/pkg/cors"
	_ "github.com/minio/minio-go/v7/pkg/encrypt"
	_ "github.com/minio/minio-go/v7/pkg/notification"
	_ "github.com/minio/minio-go/v7/pkg/tags"
)
