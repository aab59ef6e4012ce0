package events

import "strconv"

// The topics (design section 2). Every key is the execution's id but for TopicRunners (runner id), TopicStdin (the
// upload's id) and TopicDeadletter (as it came).
const (
	TopicRequests   = "verbatim.requests"
	TopicWork       = "verbatim.work"
	TopicExecutions = "verbatim.executions"
	TopicControl    = "verbatim.control"
	TopicRunners    = "verbatim.runners"
	TopicStdin      = "verbatim.stdin"
	TopicDeadletter = "verbatim.deadletter"
)

// MaxRecordBytes is the largest record the topics admit: a request with MaxInlineStdinBytes of stdin, and room
// for its attributes. Everything else is far smaller (an OutputChunk has at most MaxChunkBytes). More stdin, up to
// MaxStdinBytes, is uploaded in parts of at most MaxChunkBytes (docs/decisions/0007-stdin.md).
const (
	MaxStdinBytes       = 64 << 20
	MaxInlineStdinBytes = 8 << 20
	MaxRecordBytes      = 10 << 20
)

// Bounds on the secrets of one execution. The bytes are those of all values together, in clear: the runner looks for every one of
// them in everything that the process writes.
const (
	MaxSecrets     = 64
	MaxSecretBytes = 64 << 10
	// MaxSecretFileBytes bounds one encrypted secret: its value, and a header with a line or two for each runner.
	MaxSecretFileBytes = 256 << 10
	// MaxSecretFilesBytes bounds those of one execution together.
	MaxSecretFilesBytes = 1 << 20
)

// Topic is what a topic is created with. Partitions are never added later: that would move keys.
type Topic struct {
	Name       string
	Partitions int
	// Config holds Kafka's topic settings.
	Config map[string]string
}

// Topics lists every topic with its partition count and settings.
//
// The counts bound how many copies of a service work side by side. control and runners are small and
// read whole by their readers, so one partition each keeps them in one order.
func Topics() []Topic {
	const week = "604800000"
	config := func(more ...string) map[string]string {
		m := map[string]string{
			"cleanup.policy": "delete",
			"retention.ms":   week,
			// A record's time is the broker's, so that no producer keeps a record from retention with a time of its own.
			"message.timestamp.type": "LogAppendTime",
			"max.message.bytes":      strconv.Itoa(MaxRecordBytes),
		}
		for i := 0; i+1 < len(more); i += 2 {
			m[more[i]] = more[i+1]
		}
		return m
	}
	return []Topic{
		{Name: TopicRequests, Partitions: 6, Config: config()},
		{Name: TopicWork, Partitions: 6, Config: config()},
		{Name: TopicExecutions, Partitions: 12, Config: config()},
		{Name: TopicControl, Partitions: 1, Config: config()},
		{Name: TopicStdin, Partitions: 6, Config: config()},
		{Name: TopicRunners, Partitions: 1, Config: config("retention.ms", "3600000")},
		// A dead letter is a record and some headers more.
		{Name: TopicDeadletter, Partitions: 3, Config: config("retention.ms", "2592000000", "max.message.bytes", strconv.Itoa(MaxRecordBytes+256<<10))},
	}
}
