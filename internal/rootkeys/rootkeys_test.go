package rootkeys

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ostraka/ostraka/internal/errs"
)

func TestKeysSurviveTheLossOfAnyDrive(t *testing.T) {
	dirs := []string{t.TempDir(), t.TempDir(), t.TempDir()}
	k, missing, err := Read(dirs)
	if err != nil || !k.IsZero() || len(missing) != 3 {
		t.Fatalf("empty drives: %v, missing %q, %v", k, missing, err)
	}
	made := Generate()
	if err := Write(missing, made); err != nil {
		t.Fatal(err)
	}
	for i, dir := range dirs {
		if err := os.Remove(filepath.Join(dir, FileName)); err != nil {
			t.Fatal(err)
		}
		k, missing, err := Read(dirs)
		if err != nil || k != made || len(missing) != 1 || missing[0] != dir {
			t.Fatalf("without drive %d: same keys %v, missing %q, %v", i, k == made, missing, err)
		}
		if err := Write(missing, k); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.RemoveAll(dirs[1]); err != nil {
		t.Fatal(err)
	}
	if k, missing, err := Read(dirs); err != nil || k != made || len(missing) != 0 {
		t.Errorf("with a directory gone: same keys %v, missing %q, %v", k == made, missing, err)
	}
	st, err := os.Stat(filepath.Join(dirs[0], FileName))
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v; want 0600", st.Mode(), err)
	}
}

func TestWhatIsWrongIsRefusedAndNamed(t *testing.T) {
	a, b := t.TempDir(), t.TempDir()
	one := Generate()
	if err := Write([]string{a}, one); err != nil {
		t.Fatal(err)
	}
	if err := Write([]string{b}, Generate()); err != nil {
		t.Fatal(err)
	}
	_, _, err := Read([]string{a, b})
	if !errs.Is(err, errs.Invalid) || !strings.Contains(err.Error(), a) || !strings.Contains(err.Error(), b) {
		t.Errorf("two drives that disagree: %v", err)
	}
	for name, damage := range map[string]func(string) error{
		"open to others": func(f string) error { return os.Chmod(f, 0o644) },
		"not JSON":       func(f string) error { return os.WriteFile(f, []byte("{"), 0o600) },
		"without secret": func(f string) error { return os.WriteFile(f, []byte(`{"access_key":"abc"}`), 0o600) },
		"far too long":   func(f string) error { return os.WriteFile(f, make([]byte, maxFile+1), 0o600) },
	} {
		dir := t.TempDir()
		if err := Write([]string{dir}, one); err != nil {
			t.Fatal(err)
		}
		if err := damage(filepath.Join(dir, FileName)); err != nil {
			t.Fatal(err)
		}
		if _, _, err := Read([]string{dir}); !errs.Is(err, errs.Corrupt) || !strings.Contains(err.Error(), dir) || strings.Contains(err.Error(), one.Secret) {
			t.Errorf("a file that is %s: %v", name, err)
		}
	}
}

func TestKeysAreRandomAndHideTheirSecret(t *testing.T) {
	a, b := Generate(), Generate()
	if a.Access == b.Access || a.Secret == b.Secret || len(a.Access) != 20 || len(a.Secret) != 40 {
		t.Errorf("lengths %d, %d; distinct %v", len(a.Access), len(a.Secret), a != b)
	}
	if s := fmt.Sprintf("%v %+v %#v %s", a, a, a, a); strings.Contains(s, a.Secret) {
		t.Error("the secret prints itself")
	}
}
