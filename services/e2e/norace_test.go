//go:build !race

package e2e

// workerMemory is what a runner's worker may take, in KiB.
const workerMemory = "131072"
