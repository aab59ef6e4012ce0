package wiring

// Committed is what a runner asks about a claim of which the answer was lost.
var Committed = committed
