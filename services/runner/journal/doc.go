// Package journal is what the runner's worker knows of one attempt, on disk, so that a worker that is killed at
// any moment leaves behind everything that the next one needs to go on as if nothing had happened.
//
// One file per attempt, only appended to. A frame is
//
//	length  uint32, little endian, of the body
//	check   uint32, little endian, CRC-32C of the body
//	body    one Entry as JSON
//
// Entries come in this order, and a later one never takes anything back:
//
//	launch    what came from the work topic, and where it lay there. On disk before the offset is committed
//	claimed   the commit was acknowledged. In the file before the process is started
//	fact      a numbered fact with its exact payload. In the file before it is published
//	chunk     a numbered OutputChunk: where its bytes lie in the spool, their CRC-32C, and the state of
//	          the stream's SHA-256 after them. In the file before it is published
//	elided    what was counted of a stream behind its head and is not published, and the state of the SHA-256 of everything
//	          after it. In the file before the bytes are cut out of the spool
//	ended     where a longer stream ends. In the file before the first chunk of its tail, whose place follows from it. Also of
//	          one that cannot be kept any further, before anything of it is thrown away
//	lost      what could not be kept of a stream
//	acked     every fact up to this number is in the log
//
// A journal that grows large is written anew without the entries that later ones have made pointless (Compact), so its size follows
// from what is not acknowledged, and not from how long a process runs.
//
// A kill in the middle of an append leaves a torn last frame. Open cuts it off: what was being written had not
// been acted on. Entries are handed to the kernel one by one; that is enough against the death of any process. Only
// launch is also synced to the disk, before the claim: a machine that loses its power must still know what it claimed. That it must not
// start it twice is kept by the supervisor's StartingFile, which is on the disk before fork(2). What such a machine loses of the rest is found by the CRC of each chunk.
package journal
