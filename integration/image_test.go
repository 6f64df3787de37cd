package integration

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	s3types "github.com/aws/aws-sdk-go-v2/service/s3/types"
)

// An image is the drives of a small store as a build of its time left them: testdata/images/NAME.tar.gz, beside NAME.json,
// which says how its processes are started and what clients saw of it then. Every build opens every image and shows
// clients the same. docs/disk-format.md says when a new one is made; one that is there is never changed.

var makeImage = flag.String("make-image", "", "make images of that version, such as v1, with the binary of -ostraka, instead of testing")

const imageDir = "testdata/images"

// image is what NAME.json holds.
type image struct {
	Build string      `json:"build"` // that made it, for people
	Nodes []imageNode `json:"nodes"` // the first serves S3; without a zone it is a store of one process
	Shown shown       `json:"shown"`
}

type imageNode struct {
	Role   string   `json:"role"`
	Zone   string   `json:"zone,omitempty"`
	Drives []string `json:"drives"` // directories in the archive
}

// shown is all that clients see of a store.
type shown struct {
	Buckets []shownBucket `json:"buckets"`
}

type shownBucket struct {
	Name     string        `json:"name"`
	Created  time.Time     `json:"created"`
	Location string        `json:"location"`
	Objects  []shownObject `json:"objects"`
	Versions []string      `json:"versions"`
	Uploads  []shownUpload `json:"uploads"`
}

type shownObject struct {
	Key      string            `json:"key"`
	Listed   string            `json:"listed"` // size, ETag, class, time, as LIST has them
	SHA256   string            `json:"sha256"`
	Range    string            `json:"range"` // SHA-256 of a part of the body
	Head     map[string]string `json:"head"`
	Metadata map[string]string `json:"metadata,omitempty"`
	Tags     map[string]string `json:"tags,omitempty"`
	Parts    []string          `json:"parts,omitempty"` // size and checksum
}

type shownUpload struct {
	Key   string   `json:"key"`
	ID    string   `json:"id"`
	Parts []string `json:"parts"` // number, size, ETag
}

// imageBody is a body of that size that follows from seed, and compresses well.
func imageBody(seed uint64, size int) []byte {
	return bytes.Repeat(randomBody(seed, 1009), size/1009+1)[:size]
}

// look reads everything that a client can see.
func look(ctx context.Context, c *s3.Client) (all shown, err error) {
	buckets, err := c.ListBuckets(ctx, &s3.ListBucketsInput{})
	if err != nil {
		return all, err
	}
	for _, b := range buckets.Buckets {
		s := shownBucket{Name: *b.Name, Created: b.CreationDate.UTC()}
		loc, err := c.GetBucketLocation(ctx, &s3.GetBucketLocationInput{Bucket: b.Name})
		if err != nil {
			return all, err
		}
		s.Location = string(loc.LocationConstraint)
		for pages := s3.NewListObjectsV2Paginator(c, &s3.ListObjectsV2Input{Bucket: b.Name, MaxKeys: aws.Int32(7)}); pages.HasMorePages(); {
			r, err := pages.NextPage(ctx)
			if err != nil {
				return all, err
			}
			for _, o := range r.Contents {
				is, err := lookAt(ctx, c, *b.Name, o)
				if err != nil {
					return all, fmt.Errorf("%s/%s: %w", *b.Name, *o.Key, err)
				}
				s.Objects = append(s.Objects, is)
			}
		}
		versions, err := c.ListObjectVersions(ctx, &s3.ListObjectVersionsInput{Bucket: b.Name})
		if err != nil {
			return all, err
		}
		for _, v := range versions.Versions {
			s.Versions = append(s.Versions, fmt.Sprintln(*v.Key, *v.VersionId, *v.IsLatest, *v.Size, *v.ETag))
		}
		uploads, err := c.ListMultipartUploads(ctx, &s3.ListMultipartUploadsInput{Bucket: b.Name})
		if err != nil {
			return all, err
		}
		for _, u := range uploads.Uploads {
			up := shownUpload{Key: *u.Key, ID: *u.UploadId}
			parts, err := c.ListParts(ctx, &s3.ListPartsInput{Bucket: b.Name, Key: u.Key, UploadId: u.UploadId})
			if err != nil {
				return all, err
			}
			for _, p := range parts.Parts {
				up.Parts = append(up.Parts, fmt.Sprintln(*p.PartNumber, *p.Size, *p.ETag))
			}
			s.Uploads = append(s.Uploads, up)
		}
		all.Buckets = append(all.Buckets, s)
	}
	return all, nil
}

// lookAt reads one object.
func lookAt(ctx context.Context, c *s3.Client, bucket string, o s3types.Object) (shownObject, error) {
	is := shownObject{Key: *o.Key, Listed: fmt.Sprintln(*o.Size, *o.ETag, o.StorageClass, o.LastModified.UTC())}
	r, err := c.GetObject(ctx, &s3.GetObjectInput{Bucket: &bucket, Key: o.Key, ChecksumMode: s3types.ChecksumModeEnabled})
	if err != nil {
		return is, err
	}
	body, err := readWhole(r.Body, aws.ToInt64(r.ContentLength))
	if err != nil {
		return is, err
	}
	is.SHA256 = fmt.Sprintf("%x", sha256.Sum256(body))
	is.Metadata = r.Metadata
	is.Head = map[string]string{}
	for name, v := range map[string]*string{"type": r.ContentType, "cache": r.CacheControl, "disposition": r.ContentDisposition, "encoding": r.ContentEncoding,
		"language": r.ContentLanguage, "etag": r.ETag, "expires": r.ExpiresString, "crc64nvme": r.ChecksumCRC64NVME, "crc32": r.ChecksumCRC32, "version": r.VersionId} {
		if v != nil {
			is.Head[name] = *v
		}
	}
	is.Head["class"], is.Head["checksum type"], is.Head["modified"] = string(r.StorageClass), string(r.ChecksumType), r.LastModified.UTC().String()
	if len(body) > 0 {
		from, to := len(body)/3, len(body)/3+min(len(body)/2, 100_000)
		p, err := c.GetObject(ctx, &s3.GetObjectInput{Bucket: &bucket, Key: o.Key, Range: aws.String(fmt.Sprintf("bytes=%d-%d", from, to))})
		if err != nil {
			return is, err
		}
		part, err := readWhole(p.Body, aws.ToInt64(p.ContentLength))
		if err == nil && !bytes.Equal(part, body[from:min(to+1, len(body))]) {
			err = errors.New("a range is not what the whole body has there")
		}
		if err != nil {
			return is, err
		}
		is.Range = fmt.Sprintf("%x", sha256.Sum256(part))
	}
	tags, err := c.GetObjectTagging(ctx, &s3.GetObjectTaggingInput{Bucket: &bucket, Key: o.Key})
	if err != nil {
		return is, err
	}
	for _, t := range tags.TagSet {
		if is.Tags == nil {
			is.Tags = map[string]string{}
		}
		is.Tags[*t.Key] = *t.Value
	}
	attr, err := c.GetObjectAttributes(ctx, &s3.GetObjectAttributesInput{Bucket: &bucket, Key: o.Key,
		ObjectAttributes: []s3types.ObjectAttributes{s3types.ObjectAttributesObjectParts}})
	if err == nil && attr.ObjectParts != nil {
		for _, p := range attr.ObjectParts.Parts {
			is.Parts = append(is.Parts, fmt.Sprintln(*p.PartNumber, *p.Size, aws.ToString(p.ChecksumCRC32), aws.ToString(p.ChecksumCRC64NVME)))
		}
	}
	return is, err
}

// processes are those of an image over its drives below dir, not started yet.
func (im *image) processes(t *testing.T, dir string, args ...string) (all []*member) {
	t.Helper()
	made := true
	for _, n := range im.Nodes {
		var m *member
		if n.Zone == "" {
			m = &member{server: newServer(t, 0, args...)}
		} else {
			m = newMember(t, n.Role, 0, nil, n.Zone, args...)
			m.secret = filepath.Join(dir, "secret")
			m.args[slices.Index(m.args, "--cluster-secret-file")+1] = m.secret
		}
		m.withTestLimits()
		for _, d := range n.Drives {
			m.dirs = append(m.dirs, filepath.Join(dir, d))
		}
		if _, err := os.Stat(filepath.Join(m.dirs[0], "ostraka.json")); err != nil {
			made = false
		}
		all = append(all, m)
	}
	for i, m := range all {
		for j, other := range all { // they have other addresses than when they were started last; at the first start of all, the others join the first
			if i != j && (i > 0 || made) {
				m.args = append(m.args, "--join", other.node)
			}
		}
		if i == 0 && m.node != "" && !made {
			m.args = append(m.args, "--expect", fmt.Sprint(len(all)), "--profile", "2+1")
		}
	}
	return all
}

// startAll starts the processes of an image, and returns a client of it.
func startAll(t *testing.T, all []*member) *s3.Client {
	t.Helper()
	for _, m := range all {
		m.launch()
		if m.node != "" {
			poll(t, time.Minute, 10*time.Millisecond, "the secret of the cluster", func() error {
				_, err := os.Stat(m.secret)
				return err
			})
		}
	}
	for _, m := range all {
		poll(t, 2*time.Minute, 50*time.Millisecond, "the store to be ready", func() error { return m.probe("/-/ready") })
		if m.node != "" {
			m.missesNobody()
		}
	}
	return newAWSStore(t, all[0].server, "").c
}

func TestEveryImageOpensAndReadsBack(t *testing.T) {
	if *makeImage != "" {
		t.Skip("images are being made")
	}
	names, err := filepath.Glob(imageDir + "/*.tar.gz")
	if err != nil || len(names) < 2 {
		t.Fatalf("images: %q, %v", names, err)
	}
	for _, name := range names {
		t.Run(filepath.Base(name), func(t *testing.T) {
			t.Parallel()
			raw, err := os.ReadFile(strings.TrimSuffix(name, ".tar.gz") + ".json")
			if err != nil {
				t.Fatal(err)
			}
			var im image
			if err := json.Unmarshal(raw, &im); err != nil {
				t.Fatal(err)
			}
			dir := t.TempDir()
			if err := unpack(name, dir); err != nil {
				t.Fatal(err)
			}
			all := im.processes(t, dir)
			ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
			defer cancel()
			c := startAll(t, all)
			im.compare(t, ctx, c, "as it was")
			im.goesOn(t, ctx, c)

			// What this build made of it, it reads as well.
			for _, m := range all {
				m.stop(time.Minute)
			}
			im.compare(t, ctx, startAll(t, all), "started again")
		})
	}
}

// compare holds what clients see against what they saw then.
func (im *image) compare(t *testing.T, ctx context.Context, c *s3.Client, when string) {
	t.Helper()
	var is shown
	poll(t, time.Minute, 200*time.Millisecond, "a store that has just started to answer whatever is asked", func() (err error) {
		is, err = look(ctx, c)
		if status, _ := answered(err); err != nil && status != http.StatusServiceUnavailable { // which clients try again
			t.Fatalf("%s: %v", when, err)
		}
		return err
	})
	got, err := json.MarshalIndent(is, "", " ")
	if err != nil {
		t.Fatal(err)
	}
	want, err := json.MarshalIndent(im.Shown, "", " ")
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		a, b := strings.Split(string(got), "\n"), strings.Split(string(want), "\n")
		i := 0
		for i < min(len(a), len(b)) && a[i] == b[i] {
			i++
		}
		t.Fatalf("%s: line %d of what clients see is\n%s\nand was\n%s", when, i, strings.Join(a[max(0, i-3):min(i+4, len(a))], "\n"), strings.Join(b[max(0, i-3):min(i+4, len(b))], "\n"))
	}
}

// goesOn uses an old store: it takes what a new one takes. In the end it is as it was.
func (im *image) goesOn(t *testing.T, ctx context.Context, c *s3.Client) {
	t.Helper()
	bucket := "made-now"
	if _, err := c.CreateBucket(ctx, &s3.CreateBucketInput{Bucket: &bucket}); err != nil {
		t.Fatal(err)
	}
	for _, size := range []int{10, 100_000} {
		key, body := fmt.Sprint("new-", size), imageBody(99, size)
		s := &awsStore{c, bucket}
		if err := s.put(ctx, key, body); err != nil {
			t.Fatal(err)
		}
		if got, err := s.get(ctx, key); err != nil || !bytes.Equal(got, body) {
			t.Fatalf("%s: %d bytes, %v", key, len(got), err)
		}
		if err := s.del(ctx, key); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := c.DeleteBucket(ctx, &s3.DeleteBucketInput{Bucket: &bucket}); err != nil {
		t.Fatal(err)
	}
}

// TestAnImageIsMade makes the images of a version, if -make-image asks for it.
func TestAnImageIsMade(t *testing.T) {
	if *makeImage == "" {
		t.Skip("only with -make-image: the images that are there are not made again")
	}
	build, _, err := newServer(t, 0).ostraka("--version")
	if err != nil {
		t.Fatal(err)
	}
	for kind, im := range map[string]*image{
		"one":  {Nodes: []imageNode{{Role: "server", Drives: []string{"d1", "d2", "d3", "d4"}}}},
		"many": {Nodes: []imageNode{{"server", "z1", []string{"n1d1"}}, {"node", "z2", []string{"n2d1"}}, {"node", "z3", []string{"n3d1", "n3d2"}}}},
	} {
		t.Run(kind, func(t *testing.T) {
			im.Build = strings.TrimSpace(build)
			im.make(t, filepath.Join(imageDir, *makeImage+"-"+kind))
		})
	}
}

// make makes an image: name.tar.gz and name.json.
func (im *image) make(t *testing.T, name string) {
	if _, err := os.Stat(name + ".tar.gz"); err == nil {
		t.Fatalf("%s is there already, and images are never changed", name)
	}
	dir := t.TempDir()
	for _, n := range im.Nodes {
		for _, d := range n.Drives {
			if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
				t.Fatal(err)
			}
		}
	}
	small := []string{"--unsafe-test-min-part-size=64KiB", "--unsafe-test-chunk-size=1MiB"}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	all := im.processes(t, dir, small...)
	fillImage(t, ctx, startAll(t, all), "first")
	for _, m := range all {
		m.stop(time.Minute)
	}
	c := startAll(t, all)
	fillImage(t, ctx, c, "second")
	var err error
	if im.Shown, err = look(ctx, c); err != nil {
		t.Fatal(err)
	}
	for i, m := range all {
		if i == 0 { // what it wrote last is in its logs only
			m.kill()
		} else {
			m.stop(time.Minute)
		}
	}
	if err := pack(name+".tar.gz", dir); err != nil {
		t.Fatal(err)
	}
	raw, err := json.MarshalIndent(im, "", " ")
	if err == nil {
		err = os.WriteFile(name+".json", append(raw, '\n'), 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// fillImage writes whatever the S3 interface can leave on drives.
func fillImage(t *testing.T, ctx context.Context, c *s3.Client, bucket string) {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, b := range []string{bucket, bucket + "-empty", bucket + "-gone"} {
		in := &s3.CreateBucketInput{Bucket: &b}
		if b == "second" {
			in.CreateBucketConfiguration = &s3types.CreateBucketConfiguration{LocationConstraint: s3types.BucketLocationConstraintEuWest1}
		}
		_, err := c.CreateBucket(ctx, in)
		must(err)
	}
	put := func(key string, body []byte, change func(*s3.PutObjectInput)) {
		t.Helper()
		in := &s3.PutObjectInput{Bucket: &bucket, Key: &key, Body: bytes.NewReader(body)}
		if change != nil {
			change(in)
		}
		_, err := c.PutObject(ctx, in)
		must(err)
	}
	for i, size := range []int{0, 1, 100, 64 << 10, 64<<10 + 1, 300_000, 700_000, 2_500_000} {
		put(fmt.Sprintf("size-%d", size), imageBody(uint64(i), size), nil)
	}
	put("reduced-small", imageBody(20, 1000), func(in *s3.PutObjectInput) { in.StorageClass = s3types.StorageClassReducedRedundancy })
	put("reduced-large", imageBody(21, 200_000), func(in *s3.PutObjectInput) { in.StorageClass = s3types.StorageClassReducedRedundancy })
	put("dir/sub/käse – 漢字 & <more>", imageBody(22, 5000), func(in *s3.PutObjectInput) {
		in.ContentType, in.CacheControl, in.ContentDisposition = aws.String("text/plain; charset=utf-8"), aws.String("max-age=60"), aws.String(`attachment; filename="x"`)
		in.ContentLanguage, in.ContentEncoding, in.Expires = aws.String("de"), aws.String("identity"), aws.Time(time.Unix(2_000_000_000, 0))
		in.Metadata = map[string]string{"colour": "blue", "empty": "", "long": strings.Repeat("x", 1000)}
		in.Tagging = aws.String("team=storage&empty=")
	})
	put("with-crc32", imageBody(23, 100_000), func(in *s3.PutObjectInput) { in.ChecksumAlgorithm = s3types.ChecksumAlgorithmCrc32 })
	for i := range 3 {
		put("overwritten", imageBody(uint64(30+i), 40_000*(i+1)), nil)
		put("deleted", imageBody(uint64(40+i), 40_000*(i+1)), nil)
	}
	for i := range 20 {
		put(fmt.Sprintf("list/%02d", i), imageBody(uint64(50+i), 10*i), nil)
	}
	_, err := c.DeleteObject(ctx, &s3.DeleteObjectInput{Bucket: &bucket, Key: aws.String("deleted")})
	must(err)
	_, err = c.CopyObject(ctx, &s3.CopyObjectInput{Bucket: &bucket, Key: aws.String("copied"), CopySource: aws.String(bucket + "/size-300000")})
	must(err)
	_, err = c.PutObjectTagging(ctx, &s3.PutObjectTaggingInput{Bucket: &bucket, Key: aws.String("size-1"),
		Tagging: &s3types.Tagging{TagSet: []s3types.Tag{{Key: aws.String("later"), Value: aws.String("yes")}}}})
	must(err)
	for _, u := range []string{"multipart", "multipart-open", "multipart-aborted"} {
		up, err := c.CreateMultipartUpload(ctx, &s3.CreateMultipartUploadInput{Bucket: &bucket, Key: &u, Metadata: map[string]string{"of": "parts"},
			ChecksumAlgorithm: s3types.ChecksumAlgorithmCrc32})
		must(err)
		var done []s3types.CompletedPart
		for i, size := range []int{70_000, 1_500_000, 200} {
			n := aws.Int32(int32(2*i + 1))
			p, err := c.UploadPart(ctx, &s3.UploadPartInput{Bucket: &bucket, Key: &u, UploadId: up.UploadId, PartNumber: n,
				Body: bytes.NewReader(imageBody(uint64(80+i), size)), ChecksumAlgorithm: s3types.ChecksumAlgorithmCrc32})
			must(err)
			done = append(done, s3types.CompletedPart{PartNumber: n, ETag: p.ETag, ChecksumCRC32: p.ChecksumCRC32})
		}
		switch u {
		case "multipart":
			_, err = c.CompleteMultipartUpload(ctx, &s3.CompleteMultipartUploadInput{Bucket: &bucket, Key: &u, UploadId: up.UploadId,
				MultipartUpload: &s3types.CompletedMultipartUpload{Parts: done}})
		case "multipart-aborted":
			_, err = c.AbortMultipartUpload(ctx, &s3.AbortMultipartUploadInput{Bucket: &bucket, Key: &u, UploadId: up.UploadId})
		}
		must(err)
	}
	gone := bucket + "-gone"
	_, err = c.PutObject(ctx, &s3.PutObjectInput{Bucket: &gone, Key: aws.String("k"), Body: bytes.NewReader(imageBody(90, 10))})
	must(err)
	_, err = c.DeleteObject(ctx, &s3.DeleteObjectInput{Bucket: &gone, Key: aws.String("k")})
	must(err)
	_, err = c.DeleteBucket(ctx, &s3.DeleteBucketInput{Bucket: &gone})
	must(err)
}

// pack writes all below dir to an archive.
func pack(name, dir string) (err error) {
	f, err := os.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	z, err := gzip.NewWriterLevel(f, gzip.BestCompression)
	if err != nil {
		return err
	}
	w := tar.NewWriter(z)
	err = w.AddFS(os.DirFS(dir))
	return errors.Join(err, w.Close(), z.Close())
}

// unpack is the inverse of pack.
func unpack(name, dir string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		return err
	}
	for r := tar.NewReader(z); ; {
		h, err := r.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if !filepath.IsLocal(h.Name) {
			return fmt.Errorf("%s leaves the archive", h.Name)
		}
		path := filepath.Join(dir, h.Name)
		if h.FileInfo().IsDir() {
			if err := os.MkdirAll(path, 0o755); err != nil {
				return err
			}
			continue
		}
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		out, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, h.FileInfo().Mode()&fs.ModePerm)
		if err != nil {
			return err
		}
		_, err = io.Copy(out, r)
		if err := errors.Join(err, out.Close()); err != nil {
			return err
		}
	}
}
