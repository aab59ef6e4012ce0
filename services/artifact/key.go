package artifact

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"verbatim.dev/events"
)

// Attempt names the attempt that artifacts belong to.
type Attempt struct {
	// Execution is the execution's id.
	Execution string
	Number    uint32
}

// Compressions of an artifact.
const (
	Plain = ""
	Zstd  = "zstd"
)

// Streams are the names of the streams that have an artifact.
var Streams = []string{"stdout", "stderr"}

// Folder is where an attempt's objects are, with a slash at its end: DAY/EXECUTION/ATTEMPT/, the day being that in which the
// execution's id was made. Since an id is checked to be a UUID in its one text form, nothing that a producer makes up leads
// anywhere else.
func (a Attempt) Folder() (string, error) {
	folder, err := ExecutionFolder(a.Execution)
	if err != nil {
		return "", err
	}
	if a.Number == 0 {
		return "", fmt.Errorf("execution %s: attempts count from 1", a.Execution)
	}
	return folder + strconv.FormatUint(uint64(a.Number), 10) + "/", nil
}

// ExecutionFolder is where the objects of all attempts of an execution are, with a slash at its end.
func ExecutionFolder(id string) (string, error) {
	made, err := events.ParseExecutionID(id)
	if err != nil {
		return "", err
	}
	return made.Format("2006-01-02") + "/" + id + "/", nil
}

// Key names the object of a stream.
func (a Attempt) Key(stream, compression string) (string, error) {
	folder, err := a.Folder()
	if err != nil {
		return "", err
	}
	switch {
	case stream != Streams[0] && stream != Streams[1]:
		return "", fmt.Errorf("%q is no stream that has an artifact", stream)
	case compression == Plain:
		return folder + stream + ".log", nil
	case compression == Zstd:
		return folder + stream + ".log.zst", nil
	}
	return "", fmt.Errorf("compression %q is not known", compression)
}

// PartKey names what is kept of a stream from an offset on, while its process runs. Parts sort as their offsets do.
func (a Attempt) PartKey(stream string, offset uint64) (string, error) {
	key, err := a.Key(stream, Plain)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%s.parts/%020d", key, offset), nil
}

// ParsePart is the inverse of the last element of PartKey.
func ParsePart(key string) (offset uint64, ok bool) {
	name := key[strings.LastIndexByte(key, '/')+1:]
	offset, err := strconv.ParseUint(name, 10, 64)
	return offset, err == nil && len(name) == 20
}

// DayOf is the day (UTC) of an object of this package's naming, whatever it is of an attempt; false for any other object.
func DayOf(key string) (time.Time, bool) {
	parts := strings.SplitN(key, "/", 4)
	if len(parts) < 4 || parts[3] == "" {
		return time.Time{}, false
	}
	number, err := strconv.ParseUint(parts[2], 10, 32)
	if err != nil {
		return time.Time{}, false
	}
	folder, err := Attempt{Execution: parts[1], Number: uint32(number)}.Folder()
	if err != nil || folder != key[:len(key)-len(parts[3])] {
		return time.Time{}, false
	}
	return day(parts[0])
}

func day(name string) (time.Time, bool) {
	t, err := time.Parse(time.DateOnly, name)
	return t, err == nil
}
