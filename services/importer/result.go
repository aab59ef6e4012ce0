package importer

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
)

// result is what a result file says, as far as it was understood. What is not said is nil or empty.
type result struct {
	ExitCode       *int64
	Signal         string // Without SIG.
	Error          string
	Message        string // Of a success, too: it is an error only where there is no better one.
	Status         string
	TimedOut       bool
	Started, Ended time.Time
	PID            int64
	Host, Runner   string
	Action, ID     string
	Argv           []string
	Directory      string
	Labels         map[string]string
	Sizes          [2]*uint64 // What the files should have, stdout first.
	Digests        [2][]byte  // SHA-256 of what they should hold.
	NotUnderstood  []string   // Names of fields, sorted.
	fault          string     // Why the file is no result; then everything else is empty.
}

// names are those that workers use, without case, "_" and "-". What a field is called first wins.
var names = map[string][]string{
	"exit code": {"exitcode", "returncode", "exitstatus", "statuscode", "rc", "code"},
	"signal":    {"signal", "termsignal", "terminationsignal", "exitsignal"},
	"error":     {"error", "errormessage", "err", "failure", "failurereason"},
	"message":   {"message", "reason", "detail"},
	"status":    {"status", "state", "outcome", "result"},
	"timed out": {"timedout", "timeout", "istimeout"},
	"started":   {"startedat", "starttime", "started", "start", "startat"},
	"ended":     {"endedat", "finishedat", "endtime", "finishtime", "completedat", "ended", "finished", "end", "stoppedat"},
	"pid":       {"pid", "processid"},
	"host":      {"host", "hostname", "node", "machine"},
	"runner":    {"runner", "worker", "workerid", "runnerid", "agent"},
	"action":    {"action", "script", "scriptname", "job", "jobname", "task", "name"},
	"id":        {"id", "executionid", "runid", "jobid", "taskid", "requestid", "uuid"},
	"command":   {"argv", "command", "cmd", "commandline"},
	"arguments": {"args", "arguments"},
	"directory": {"directory", "cwd", "workdir", "workingdirectory"},
	"labels":    {"labels", "tags"},
	"stdout":    {"stdoutbytes", "stdoutsize", "stdoutlength"},
	"stderr":    {"stderrbytes", "stderrsize", "stderrlength"},
	"stdout256": {"stdoutsha256"},
	"stderr256": {"stderrsha256"},
}

// readResult reads a result. Text that is none is a fault, no error: a worker that was killed leaves half a file.
func readResult(text []byte) result {
	fields, err := object(text)
	if err != nil {
		return result{fault: err.Error()}
	}
	// Some wrap it: {"job": 7, "result": {"exit_code": 1}}. What is outside goes first.
	inner, _ := fields["result"].(map[string]any)
	r := result{}
	f := &fieldReader{fields: fields, inner: inner, used: map[string]bool{}}
	f.take("exit code", func(v any) bool { return set(&r.ExitCode, integer(v)) })
	f.take("signal", func(v any) bool { r.Signal = signalOf(v); return r.Signal != "" })
	f.text("error", &r.Error)
	f.text("message", &r.Message)
	f.text("status", &r.Status)
	f.take("timed out", func(v any) bool { b, ok := v.(bool); r.TimedOut = b; return ok })
	f.take("started", func(v any) bool { r.Started = instant(v); return !r.Started.IsZero() })
	f.take("ended", func(v any) bool { r.Ended = instant(v); return !r.Ended.IsZero() })
	f.take("pid", func(v any) bool {
		n := integer(v)
		if n == nil || *n <= 0 {
			return false
		}
		r.PID = *n
		return true
	})
	f.text("host", &r.Host)
	f.text("runner", &r.Runner)
	f.text("action", &r.Action)
	f.text("id", &r.ID)
	f.take("command", func(v any) bool { r.Argv = words(v); return len(r.Argv) > 0 })
	f.take("arguments", func(v any) bool {
		more, ok := v.([]any)
		r.Argv = append(r.Argv, words(v)...)
		return ok && len(words(v)) == len(more)
	})
	f.text("directory", &r.Directory)
	f.take("labels", func(v any) bool { r.Labels = labels(v); return r.Labels != nil })
	for i, stream := range streams {
		f.take(stream.name, func(v any) bool {
			if n := integer(v); n != nil && *n >= 0 {
				size := uint64(*n)
				r.Sizes[i] = &size
			}
			return r.Sizes[i] != nil
		})
		f.take(stream.name+"256", func(v any) bool {
			s, _ := v.(string)
			if sum, err := hex.DecodeString(s); err == nil && len(sum) == 32 {
				r.Digests[i] = sum
			}
			return r.Digests[i] != nil
		})
	}
	r.NotUnderstood = f.rest()
	return r
}

// object decodes one JSON object, and nothing behind it.
func object(text []byte) (map[string]any, error) {
	d := json.NewDecoder(bytes.NewReader(bytes.TrimPrefix(text, []byte("\xef\xbb\xbf"))))
	d.UseNumber()
	var v any
	if err := d.Decode(&v); err != nil {
		if err == io.EOF { //nolint:errorlint // As it comes.
			return nil, fmt.Errorf("it is empty")
		}
		return nil, fmt.Errorf("it is no JSON: %s", strings.ReplaceAll(err.Error(), "\n", " "))
	}
	if _, err := d.Token(); err != io.EOF { //nolint:errorlint // As it comes.
		return nil, fmt.Errorf("something follows its JSON, from byte %d on", d.InputOffset())
	}
	fields, ok := v.(map[string]any)
	if !ok {
		return nil, fmt.Errorf("it is JSON, but no object")
	}
	return fields, nil
}

// fieldReader finds fields by any of their names.
type fieldReader struct {
	fields, inner map[string]any
	used          map[string]bool
}

func plain(name string) string {
	return strings.NewReplacer("_", "", "-", "", " ", "", ".", "").Replace(strings.ToLower(name))
}

// take gives the first field of a meaning that use understands.
func (f *fieldReader) take(meaning string, use func(any) bool) {
	for _, name := range names[meaning] {
		for _, in := range []struct {
			prefix string
			fields map[string]any
		}{{"", f.fields}, {"result.", f.inner}} {
			for _, key := range sorted(in.fields) {
				if plain(key) != name || in.fields[key] == nil {
					continue
				}
				if use(in.fields[key]) {
					f.used[in.prefix+key] = true
					return
				}
			}
		}
	}
}

func (f *fieldReader) text(meaning string, to *string) {
	f.take(meaning, func(v any) bool {
		switch v := v.(type) {
		case string:
			*to = v
		case json.Number:
			*to = v.String()
		case map[string]any: // {"error": {"message": "…"}}
			*to, _ = v["message"].(string)
		}
		return *to != ""
	})
}

// rest lists what nobody asked for or understood. null says nothing.
func (f *fieldReader) rest() []string {
	var names []string
	add := func(prefix string, fields map[string]any) {
		for name, v := range fields {
			if v != nil && v != "" && !f.used[prefix+name] && (prefix != "" || f.inner == nil || name != "result") {
				names = append(names, prefix+name)
			}
		}
	}
	add("", f.fields)
	add("result.", f.inner)
	slices.Sort(names)
	return names
}

func sorted(m map[string]any) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

func set(to **int64, v *int64) bool {
	*to = v
	return v != nil
}

// integer understands 3, 3.0 and "3".
func integer(v any) *int64 {
	var s string
	switch v := v.(type) {
	case json.Number:
		s = v.String()
	case string:
		s = strings.TrimSpace(v)
	default:
		return nil
	}
	if n, err := strconv.ParseInt(s, 10, 64); err == nil {
		return &n
	}
	f, err := strconv.ParseFloat(s, 64)
	if err != nil || f != math.Trunc(f) || math.Abs(f) > 1<<53 {
		return nil
	}
	n := int64(f)
	return &n
}

// instant understands RFC 3339, and seconds or milliseconds since 1970. A time without a zone is none.
func instant(v any) time.Time {
	if s, ok := v.(string); ok {
		for _, layout := range []string{time.RFC3339Nano, "2006-01-02 15:04:05.999999999Z07:00", "2006-01-02T15:04:05.999999999Z0700"} {
			if t, err := time.Parse(layout, s); err == nil {
				return sane(t)
			}
		}
	}
	n, ok := v.(json.Number)
	if !ok {
		return time.Time{}
	}
	f, err := n.Float64()
	switch {
	case err != nil:
		return time.Time{}
	case f >= 1e11: // 1e11 seconds are in the year 5138, 1e11 milliseconds in 1973.
		return sane(time.UnixMicro(int64(math.Min(f, 1e15) * 1e3)))
	default:
		return sane(time.UnixMicro(int64(f * 1e6)))
	}
}

// sane drops times for which no execution id can be made.
func sane(t time.Time) time.Time {
	if t = t.UTC(); t.Year() < 2000 || t.Year() > 2100 {
		return time.Time{}
	}
	return t
}

func words(v any) []string {
	switch v := v.(type) {
	case string:
		if v != "" {
			return []string{v}
		}
	case []any:
		var out []string
		for _, w := range v {
			s, ok := w.(string)
			if !ok {
				return nil
			}
			out = append(out, s)
		}
		return out
	}
	return nil
}

func labels(v any) map[string]string {
	m, ok := v.(map[string]any)
	if !ok {
		return nil
	}
	out := map[string]string{}
	for k, v := range m {
		switch v := v.(type) {
		case string:
			out[k] = v
		case json.Number:
			out[k] = v.String()
		case bool:
			out[k] = strconv.FormatBool(v)
		default:
			return nil
		}
	}
	return out
}
