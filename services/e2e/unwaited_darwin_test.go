package e2e

// unwaited has no meaning here: the scenario is about Linux.
func unwaited() { panic("this program is for Linux") }
