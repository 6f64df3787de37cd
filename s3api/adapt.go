package s3api

import (
	"context"

	"github.com/ostraka/ostraka/object"
)

// Adapt makes a Store of the object store.
func Adapt(s *object.Store) Store { return objectStore{s} }

// objectStore is *object.Store, but for the reads, whose open version becomes a Content.
type objectStore struct{ *object.Store }

func (s objectStore) Get(ctx context.Context, bucket, key string, o object.GetOptions) (Content, error) {
	obj, err := s.Store.Get(ctx, bucket, key, o)
	if err != nil {
		return Content{}, err
	}
	return Content{Info: obj.Info, Offset: obj.Offset, Length: obj.Length, Partial: obj.Partial, Body: obj}, nil
}

func (s objectStore) Head(ctx context.Context, bucket, key string, o object.GetOptions) (Content, error) {
	obj, err := s.Store.Head(ctx, bucket, key, o)
	if err != nil {
		return Content{}, err
	}
	return Content{Info: obj.Info, Offset: obj.Offset, Length: obj.Length, Partial: obj.Partial}, nil
}
