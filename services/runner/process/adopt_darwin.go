package process

// Unblocked calls start.
func Unblocked(start func()) { start() }
