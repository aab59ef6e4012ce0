package wiring

// Committed is what a runner asks about a claim of which the answer was lost.
var Committed = committed

// Signature is what a runner signs its commits with.
var Signature = signature

// Upload is what a runner reads an uploaded standard input with.
var Upload = upload
