//go:build race

package e2e

// workerMemory is what a runner's worker may take, in KiB: the race detector takes several times what it watches
// (https://go.dev/doc/articles/race_detector).
const workerMemory = "1048576"
