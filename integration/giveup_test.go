package integration

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"
)

// A node dies for good. Its drives are given up, what they held is rebuilt from the others, and the node is forgotten;
// when it comes back after all, nobody takes it, and it says why.
func TestANodeThatDiedForGoodIsGivenUp(t *testing.T) {
	t.Parallel()
	first := newMember(t, "server", 2, nil, "z1", "--expect", "3", "--profile", "2+1")
	first.launch()
	poll(t, 30*time.Second, 10*time.Millisecond, "the secret of the cluster", func() error {
		_, err := os.Stat(first.secret)
		return err
	})
	second, dead := newMember(t, "server", 2, first, "z2"), newMember(t, "server", 2, first, "z3")
	for _, m := range []*member{second, dead} {
		m.launch()
	}
	for _, m := range []*member{first, second, dead} {
		poll(t, 2*time.Minute, 50*time.Millisecond, "the cluster to be laid out", func() error { return m.probe("/-/ready") })
	}
	bodies := map[string][]byte{"small": randomBody(1, 3000), "large": randomBody(2, 3_000_000), "empty": {}}
	first.makeBucket("photos")
	for key, body := range bodies {
		second.put("photos", key, body)
	}
	admin := func(m *member, args ...string) (string, error) {
		out, stderr, err := m.ostraka(append([]string{"admin"}, args...)...)
		if err != nil {
			err = fmt.Errorf("%w: %s", err, stderr)
		}
		return out, err
	}
	if _, err := admin(first, "node", "drain", "z3", "--dead", "--yes"); err == nil || !strings.Contains(err.Error(), "serves") {
		t.Fatalf("a node that serves was given up: %v", err)
	}
	if _, err := admin(first, "node", "zone", "z2", "z2-other"); err != nil {
		t.Fatal(err)
	}
	// With two voters of three the loss of one is that of the control plane.
	poll(t, 2*time.Minute, 50*time.Millisecond, "three voters", func() error {
		if n := strings.Count(first.log.String(), `change="a voter came"`); n < 2 {
			return fmt.Errorf("%d came", n)
		}
		return nil
	})
	dead.kill()
	first.put("photos", "later", bodies["large"])
	bodies["later"] = bodies["large"]
	poll(t, 2*time.Minute, time.Second, "the node to be given up", func() error {
		_, err := admin(first, "node", "drain", "z3", "--dead", "--yes")
		return err
	})
	poll(t, 5*time.Minute, time.Second, "the plan to be over", func() error {
		out, err := admin(second, "layout", "show", "--json")
		if err == nil && !strings.Contains(out, `"plan": null`) {
			err = fmt.Errorf("it goes on: %s", out)
		}
		return err
	})
	for key, body := range bodies {
		first.get("photos", key, body)
		second.get("photos", key, body)
	}
	// What was rebuilt is proved, and each of those that are left knows it.
	for _, m := range []*member{first, second} {
		poll(t, 2*time.Minute, time.Second, "a check of what was rebuilt", func() error {
			out, err := admin(m, "heal", "status", "--json")
			if err == nil && !strings.Contains(out, `"state": "healthy"`) {
				err = fmt.Errorf("not healthy: %s", out)
			}
			return err
		})
	}

	// It comes back while it is known: it closes its drives, and says so at its next start.
	dead.onlyDrives()
	dead.launch()
	poll(t, 2*time.Minute, 200*time.Millisecond, "the drives to be refused", func() error {
		out, err := admin(dead, "drive", "list", "--json")
		if err == nil && strings.Count(out, `"state": "replaced"`) != 2 {
			err = fmt.Errorf("not both are: %s", out)
		}
		return err
	})
	dead.stop(time.Minute)
	if out := refused(t, dead.env, append(append([]string{"server", "--address", dead.addr}, dead.args...), dead.dirs...)...); !strings.Contains(out, "given up") {
		t.Errorf("a node all of whose drives were given up: %q", out)
	}
	poll(t, 2*time.Minute, time.Second, "the node to be forgotten", func() error {
		_, err := admin(second, "node", "remove", "z3")
		return err
	})
	if out, err := admin(first, "node", "list"); err != nil || strings.Contains(out, "z3") || !strings.Contains(out, "z2-other") {
		t.Errorf("the nodes that are left: %v\n%s", err, out)
	}
}
