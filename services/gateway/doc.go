// Package gateway is the HTTP API: submit, read, follow, cancel and query executions.
//
//	POST /v1/executions                          accept a request           → verbatim.requests
//	POST /v1/stdin                               take a large stdin         → verbatim.stdin
//	POST /v1/runners/{id}/cordon, /uncordon      take no more, or again     → verbatim.control
//	POST /v1/executions/{id}/cancel              ask to stop it             → verbatim.control
//	GET  /v1/executions, /v1/executions/{id}     rows                       ← ClickHouse
//	GET  /v1/executions/{id}/output/{stream}     exact bytes, ranges        ← ClickHouse
//	GET  /v1/executions/{id}/events              facts, one JSON per line   ← ClickHouse
//	GET  /v1/executions/{id}/tail                facts, live, as SSE        ← ClickHouse, then Kafka
//	GET  /v1/runners                             who lives and runs what    ← verbatim.runners
//	POST /v1/query                               one reading statement      ← ClickHouse
//	GET  /livez /readyz /metrics /openapi.json /                            for operators and people
//
// # What an answer means
//
// 202 means that Kafka has the request on all its in-sync replicas; nothing else is accepted. The execution id is made by the
// client or here, and the event is worked out from id and request alone, so a resend is the same event.
//
// Reads see what was written before them: they wait until the projector or the recorder has stored
// what the log held when the read came (package barrier). When that takes too long the answer is given
// anyway, marked with the header Verbatim-Stale. An execution that this gateway accepted and that no
// service has seen yet is shown as what it is, requested.
//
// An output's body never joins bytes silently: ranges that are not there are named in headers before the
// body, or in a trailer where they are found on the way, or the connection breaks.
//
// # Who may ask
//
// Whoever can ask can start processes. So the gateway listens on loopback only, unless it has a token;
// without one it answers only requests whose Host is this machine, so that a
// page whose name was rebound to this address gets nothing, and in no case a write by a page of another origin.
//
// # Failures
//
// Kafka away: submit and cancel answer 503 within 10 s, reads answer as stale, tails wait. ClickHouse
// away: reads answer 503, submit works, and so does cancel, without looking whether there is something to cancel. Gateway killed: an accepted request is in Kafka; clients
// resend what was not answered under the same id. A client that does not read has 30 s per write, and holds a bounded part
// of what it reads, but no connection to the database and no reader of Kafka.
package gateway
