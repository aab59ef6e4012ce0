//go:build !linux

package supervisor

import "context"

// watch sees nothing here: there are no pidfds.
type watch struct{}

func openWatch(int) watch { return watch{} }

func (watch) lives() bool { return false }

func (watch) untilEnded(context.Context) {}

func (watch) close() {}
