//go:build !linux

package spool_test

// fullDiskVariable is never set: there are no mount namespaces.
const fullDiskVariable = "VERBATIM_TEST_FULL_DISK"

func playFullDisk(string) int { return 1 }
