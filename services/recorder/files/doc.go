// Package files makes the artifacts: the files stdout.log and stderr.log of every attempt, in a folder or a bucket.
//
// An artifact is a function of the archive. The archive holds every chunk once in effect, whatever was delivered twice or out of
// order, and outlives the log; an artifact is what the archive has of a stream, in the order of the offsets, in one object. So nothing
// here has a state that must be kept: whatever is killed, and whoever goes on, makes the same object under the same name again.
//
//	OutputSealed, RunnerLost ──► wait until the archive has all of the log ──► stream it into one object per stream,
//	                                                                       compare with the seal
//	                                   acknowledge ◄── remove the parts ◄── publish OutputRecorded
//
// The message that ends an attempt is acknowledged when all this is done; killed anywhere before, it is delivered again. An attempt
// whose process runs is flushed to parts, objects <stream>.log.parts/<offset>, when enough of it came or some time has passed, so that
// what was there is in the store whatever happens to Kafka and the archive. Chunks are not waited for with that: a part may lack the
// last moments before a kill, and the artifact does not, because it is not made of parts.
//
// A chunk that comes after its attempt's end makes the artifact be made again. This is told by offsets in the log: a chunk below the
// last end is in the artifact or will be, because that end has not been acknowledged; one above it is late, and is acknowledged when it is
// in. OutputRecorded is published again when its content differs, with the next sequence.
//
// ExecutionDeleted removes all objects of an execution, and nothing is made of its late facts, which the archive has until the recorder looks
// for them. Whoever has made objects asks once more whether the execution was deleted meanwhile, and then removes them.
//
// The service reads the log in a consumer group of its own, so a store that is away or slow does not hold up the archive. While it is away
// the work stands still, in bounded memory; nothing is dead-lettered.
package files
