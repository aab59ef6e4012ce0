// Package claim keeps, beside the offset that the group of runners has committed, which runner claimed what. A commit replaces the one
// before it, so its metadata has more than its own runner: "r2@120 r1@90" says that r2 claimed from offset 120 on, up to what is
// committed, and r1 from 90 to 119. Ids of runners have neither of the two separators. Versions before this wrote the
// id alone, which speaks of the last offset below the commit.
package claim

import (
	"slices"
	"strconv"
	"strings"

	"verbatim.dev/events/kafka"
)

const (
	// maxRuns is how many owners of a partition, one after the other, are told apart. Of all before them it is not known who it was.
	maxRuns = 16
	// maxID is the longest id, in bytes: 16 runs of it, with offsets of up to 19 digits, stay below the 4096 bytes that Kafka takes.
	maxID = 128
)

// run is what one runner claimed, up to the next run or to what is committed.
type run struct {
	runner string
	from   int64
}

// Sign returns the metadata for what a runner commits of a partition that it was assigned; before is the last commit there.
func Sign(before kafka.Commit, runner string) string {
	runs := slices.DeleteFunc(decode(before), func(r run) bool { return r.from >= before.Offset }) // The group was set back.
	if len(runs) == 0 || runs[0].runner != runner {
		runs = slices.Insert(runs, 0, run{runner, before.Offset})
	}
	return encode(runs[:min(len(runs), maxRuns)])
}

// Owner returns the runner that claimed the record at an offset below the commit; empty when the commit does not say it.
func Owner(last kafka.Commit, offset int64) string {
	if offset >= last.Offset {
		return ""
	}
	for _, r := range decode(last) {
		if r.from <= offset {
			return r.runner
		}
	}
	return ""
}

func encode(runs []run) string {
	words := make([]string, len(runs))
	for i, r := range runs {
		words[i] = r.runner + "@" + strconv.FormatInt(r.from, 10)
	}
	return strings.Join(words, " ")
}

// decode returns the runs, the newest first; none when the metadata is somebody else's.
func decode(c kafka.Commit) []run {
	if !strings.ContainsAny(c.Metadata, "@ ") {
		if c.Metadata == "" || len(c.Metadata) > maxID || c.Offset < 1 {
			return nil
		}
		return []run{{c.Metadata, c.Offset - 1}}
	}
	var runs []run
	for word := range strings.SplitSeq(c.Metadata, " ") {
		runner, digits, ok := strings.Cut(word, "@")
		from, err := strconv.ParseInt(digits, 10, 64)
		if !ok || err != nil || from < 0 || runner == "" || len(runner) > maxID || len(runs) > 0 && from >= runs[len(runs)-1].from {
			return nil
		}
		runs = append(runs, run{runner, from})
	}
	return runs
}
