// Package rootkeys owns the file in which a store that was given no root keys keeps the ones that
// it made: root-keys.json, one copy on every drive, readable by its owner only.
//
//	{"access_key": "…", "secret_key": "…"}
//
// It never prints or logs a secret, and never overwrites a file that says something else: two
// drives that disagree are refused, with both paths named. Losing any drives but the last one
// loses no keys, because each start writes the missing copies.
package rootkeys

import (
	"crypto/rand"
	"encoding/base32"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/ostraka/ostraka/internal/errs"
)

// FileName is the name of the file in the directory of a drive.
const FileName = "root-keys.json"

// maxFile bounds what is read of a file that somebody may have replaced.
const maxFile = 4 << 10

// Keys are the credentials of the root user.
type Keys struct {
	Access string `json:"access_key"`
	Secret string `json:"secret_key"`
}

// String hides the secret.
func (k Keys) String() string { return k.Access + ":[hidden]" }

// GoString hides the secret.
func (k Keys) GoString() string { return k.String() }

// IsZero reports whether there are no keys.
func (k Keys) IsZero() bool { return k == Keys{} }

// Generate makes a pair: 20 characters of access key, 40 of secret (240 bits).
func Generate() Keys {
	var a [15]byte
	var s [30]byte
	// crypto/rand.Read never fails (it ends the process instead).
	rand.Read(a[:])
	rand.Read(s[:])
	access := "OS" + base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(a[:])[:18]
	return Keys{Access: access, Secret: base64.RawURLEncoding.EncodeToString(s[:])}
}

// Read returns the keys that the directories hold, and the directories without a file. Keys are
// zero if no directory has one. A directory that is not there at all is passed over.
func Read(dirs []string) (k Keys, missing []string, err error) {
	const op = "rootkeys.Read"
	from := ""
	for _, dir := range dirs {
		name := filepath.Join(dir, FileName)
		got, err := readFile(name)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			if st, err := os.Stat(dir); err == nil && st.IsDir() {
				missing = append(missing, dir)
			}
			continue
		case err != nil:
			return Keys{}, nil, &errs.Error{Op: op, Kind: errs.Corrupt, Msg: name + " cannot be read as a file of root keys", Err: err}
		case from != "" && got != k:
			return Keys{}, nil, errs.E(op, errs.Invalid, fmt.Sprintf("%s and %s hold different root keys; remove the one that is wrong", from, name))
		}
		k, from = got, name
	}
	return k, missing, nil
}

func readFile(name string) (Keys, error) {
	st, err := os.Stat(name)
	if err != nil {
		return Keys{}, err
	}
	if st.Size() > maxFile {
		return Keys{}, fmt.Errorf("%d bytes are too many", st.Size())
	}
	if st.Mode().Perm()&0o077 != 0 {
		return Keys{}, fmt.Errorf("mode %#o lets others read it; chmod 600", st.Mode().Perm())
	}
	raw, err := os.ReadFile(name)
	if err != nil {
		return Keys{}, err
	}
	var k Keys
	if err := json.Unmarshal(raw, &k); err != nil {
		return Keys{}, err
	}
	if k.Access == "" || k.Secret == "" {
		return Keys{}, errors.New("a key is empty")
	}
	return k, nil
}

// Write puts the keys into each directory, durably: a file under a temporary name, synced, then
// renamed, then the directory synced.
func Write(dirs []string, k Keys) error {
	for _, dir := range dirs {
		if err := write(dir, k); err != nil {
			return &errs.Error{Op: "rootkeys.Write", Kind: errs.KindOf(err), Msg: "the root keys cannot be stored in " + dir, Err: err}
		}
	}
	return nil
}

func write(dir string, k Keys) (err error) {
	raw, err := json.Marshal(k)
	if err != nil {
		return err
	}
	tmp := filepath.Join(dir, FileName+".new")
	f, err := os.OpenFile(tmp, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(append(raw, '\n'))
	err = errors.Join(err, f.Chmod(0o600), f.Sync(), f.Close())
	if err != nil {
		return err
	}
	if err := os.Rename(tmp, filepath.Join(dir, FileName)); err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
