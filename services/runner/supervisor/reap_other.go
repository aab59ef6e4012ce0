//go:build !linux

package supervisor

// reap does nothing here: orphans go to the system's first process.
func (r *run) reap() (stop func()) { return func() {} }

func (f *Family) reap() (stop func()) { return func() {} }
