// Package api holds what the gateway and its clients say to each other over HTTP: bodies and header
// names. It has no behaviour but the reading of a fact's payload.
package api

// Headers of the gateway's own.
const (
	// HeaderIdempotencyKey carries the execution id a client chose, a UUIDv7. The same request with the
	// same key is the same execution, however often it is sent.
	HeaderIdempotencyKey = "Idempotency-Key"
	// HeaderStale says that an answer may lack the newest facts, and whose work was not waited for any
	// longer: "projector", "recorder", or both with a comma between.
	HeaderStale = "Verbatim-Stale"
	// HeaderComplete says of an output whether all of it is here: "true", "false", or "unknown" while the
	// process runs.
	HeaderComplete = "Verbatim-Complete"
	// HeaderMissing lists the ranges of the stream, half-open and separated by commas ("10-20,30-31" lacks the
	// bytes 10 to 19 and 30), that are known to be lost or have not arrived. The body joins what is around them.
	HeaderMissing = "Verbatim-Missing"
	// HeaderElided lists, in the same way, the ranges that were left out on purpose (stream limit).
	HeaderElided = "Verbatim-Elided"
	// HeaderMissingFound is a trailer: ranges that turned out to be absent while the body was sent.
	HeaderMissingFound = "Verbatim-Missing-Found"
	// HeaderAttempt says which attempt an output belongs to.
	HeaderAttempt = "Verbatim-Attempt"
	// HeaderLastEventID resumes a tail after a Kafka offset (HTML standard, server-sent events).
	HeaderLastEventID = "Last-Event-ID"
)

// Names of the events of a tail that are no facts.
const (
	// TailEnd ends a tail: the execution's output is sealed.
	TailEnd = "end"
	// TailShutdown ends a tail because the gateway stops; the client resumes elsewhere.
	TailShutdown = "shutdown"
	// TailError ends a tail that cannot go on; data is a Problem.
	TailError = "error"
)
