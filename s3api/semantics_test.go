package s3api

import (
	"bufio"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/ostraka/ostraka/auth"
)

// SDKs give programs the names of user metadata in the case of the wire, and AWS stores and sends
// them in lower case, so the case is part of the interface.
func TestMetadataNamesAreInLowerCaseOnTheWire(t *testing.T) {
	w := newWorld(t)
	w.want(200, "PUT", "/bucket", "")
	w.want(200, "PUT", "/bucket/k", "body", "X-Amz-Meta-Some-Name", "Value")
	for _, method := range []string{"GET", "HEAD"} {
		req := w.request(method, "/bucket/k", "")
		if err := auth.SignRequest(req, auth.Credentials{AccessKeyID: testKey, Secret: testSecret}, "us-east-1", "s3", auth.HashPayload(nil), time.Now()); err != nil {
			t.Fatal(err)
		}
		c, err := net.Dial("tcp", w.server.Listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if err := req.Write(c); err != nil {
			t.Fatal(err)
		}
		found := false
		for r := bufio.NewReader(c); ; {
			line, err := r.ReadString('\n')
			if err != nil {
				t.Fatal(err)
			}
			if strings.TrimSpace(line) == "" {
				break
			}
			found = found || strings.HasPrefix(line, "x-amz-meta-some-name: Value")
		}
		if !found {
			t.Errorf("%s: there is no line x-amz-meta-some-name: Value", method)
		}
	}
}
