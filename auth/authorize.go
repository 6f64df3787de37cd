package auth

import "context"

// Action is an operation as policies name it, such as "s3:GetObject".
type Action string

// Resource is what an action touches.
type Resource struct {
	ARN   string // such as "arn:aws:s3:::bucket/key"
	Owner string // canonical id of the account that owns it; "" for what no account owns yet
}

// Conditions are the condition keys of a request, such as "aws:SourceIp", with their values.
type Conditions map[string][]string

// Authorizer decides. It is called once for each action on each resource, from many goroutines, and
// decides from what is in memory.
type Authorizer interface {
	// Authorize returns nil if id may do action on resource, else an *Error with
	// ReasonAccessDenied, whose kind is errs.Denied.
	Authorize(ctx context.Context, id Identity, action Action, resource Resource, conditions Conditions) error
}

// RootOnly allows everything to the root identity of the account that owns the resource, and
// nothing to anybody else: what holds while there are no policies.
type RootOnly struct{}

// Authorize implements Authorizer.
func (RootOnly) Authorize(_ context.Context, id Identity, action Action, resource Resource, _ Conditions) error {
	owns := resource.Owner == "" || resource.Owner == id.AccountID
	if id.Root && !id.Anonymous && id.AccountID != "" && owns {
		return nil
	}
	return refuse("auth.Authorize", ReasonAccessDenied, "Access Denied")
}
