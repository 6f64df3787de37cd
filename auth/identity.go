package auth

import "context"

// Identity is who signed a request. The zero value is nobody; Anonymous says that nothing was signed.
type Identity struct {
	AccountID   string // canonical id of the account, 64 hex digits
	AccountName string
	AccessKeyID string
	// UserARN is the ARN of the user or assumed role; "" for an account's root.
	UserARN   string
	UserName  string
	Root      bool
	Anonymous bool
	// SessionToken belongs to temporary credentials: requests must carry exactly this token, and
	// where it is empty they must carry none. It is a secret.
	SessionToken string
}

// String names the identity for logs; it holds no secret.
func (i Identity) String() string {
	switch {
	case i.Anonymous:
		return "anonymous"
	case i.UserARN != "":
		return i.UserARN
	}
	return i.AccountName + "/" + i.AccessKeyID
}

// GoString keeps the session token out of %#v.
func (i Identity) GoString() string { return "auth.Identity{" + i.String() + "}" }

// KeySource finds the secret of an access key.
type KeySource interface {
	// Secret returns the secret and the identity of an access key id that is active, and ok false
	// for one that is unknown, disabled or expired. It is called from many goroutines, once for
	// each request, and must not block on the network. The id comes from an unverified request.
	Secret(ctx context.Context, accessKeyID string) (secret string, id Identity, ok bool)
}

// Credentials sign requests.
type Credentials struct {
	AccessKeyID  string
	Secret       string
	SessionToken string // "" for long-lived keys
}

// String hides the secret.
func (c Credentials) String() string { return c.AccessKeyID }

// GoString hides the secret.
func (c Credentials) GoString() string { return "auth.Credentials{" + c.AccessKeyID + "}" }
