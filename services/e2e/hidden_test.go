package e2e

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"unicode/utf16"

	"github.com/klauspost/compress/zstd"
	"github.com/rogpeppe/go-internal/testscript"
)

// hidden wants secrets to be nowhere in files and folders: no value in any of many forms, also not inside of what
// Kafka's batches and ClickHouse's parts hold compressed with zstd. With ! it wants one to be found, which shows that it looks.
//
//	hidden SECRET[,SECRET…] PATH…
//
// A SECRET is a file with the value. The path "processes" stands for the command lines and environments of the scenario's stack and of
// everything below it.
func hidden(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) < 2 {
		ts.Fatalf("usage: hidden SECRET[,SECRET…] PATH…")
	}
	var h hunt
	for _, name := range strings.Split(args[0], ",") {
		h.learn(ts.ReadFile(name))
	}
	for _, path := range args[1:] {
		if path == "processes" {
			ts.Check(h.processes(stackOf(ts).process.Process.Pid))
		} else {
			ts.Check(h.folder(ts.MkAbs(path)))
		}
	}
	if h.searched == 0 {
		ts.Fatalf("there was nothing to search")
	}
	if found := len(h.found) > 0; found != neg {
		ts.Fatalf("in %d bytes: secrets in %q, want (not: %v) none", h.searched, h.found, neg)
	}
}

type hunt struct {
	forms    [][]byte
	searched int64
	found    []string
}

// learn adds a value in the forms in which it may show itself, and in parts. Anything shorter than 8 bytes is in many files.
func (h *hunt) learn(value string) {
	quoted, _ := json.Marshal(value)
	forms := []string{
		value, strings.TrimSpace(value), value[:min(12, len(value))], value[max(0, len(value)-12):], hex.EncodeToString([]byte(value)),
		strings.ToUpper(hex.EncodeToString([]byte(value))), url.QueryEscape(value), url.PathEscape(value), string(quoted[1 : len(quoted)-1]),
	}
	forms = append(forms, strings.Split(value, "\n")...)
	var wide []byte
	for _, u := range utf16.Encode([]rune(value)) {
		wide = append(wide, byte(u), byte(u>>8))
	}
	forms = append(forms, string(wide))
	for before := range 3 {
		for _, encoding := range []*base64.Encoding{base64.StdEncoding, base64.URLEncoding} {
			// Without the characters at its ends that depend on what is around.
			text := encoding.EncodeToString(append(make([]byte, before), value...))
			forms = append(forms, text[4:len(text)-4])
		}
	}
	for _, f := range forms {
		if len(f) >= 8 {
			h.forms = append(h.forms, []byte(f))
		}
	}
}

func (h *hunt) look(where string, data []byte) {
	h.searched += int64(len(data))
	for _, f := range h.forms {
		if bytes.Contains(data, f) {
			h.found = append(h.found, where)
			return
		}
	}
}

func (h *hunt) folder(path string) error {
	return filepath.WalkDir(path, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.Type().IsRegular() {
			if os.IsNotExist(err) {
				err = nil // A running stack tidies up.
			}
			return err
		}
		data, err := os.ReadFile(path)
		if os.IsNotExist(err) {
			return nil
		} else if err != nil {
			return err
		}
		h.look(path, data)
		h.look(path+" (its name)", []byte(path))
		return h.frames(path, data)
	})
}

// frames looks into what is compressed, wherever a frame begins (RFC 8878, section 3.1.1).
func (h *hunt) frames(path string, data []byte) error {
	decoder, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(64<<20))
	if err != nil {
		return err
	}
	defer decoder.Close()
	magic := []byte{0x28, 0xb5, 0x2f, 0xfd}
	for at := 0; ; at++ {
		next := bytes.Index(data[at:], magic)
		if next < 0 {
			return nil
		}
		at += next
		if err := decoder.Reset(bytes.NewReader(data[at:])); err != nil {
			return err
		}
		var plain bytes.Buffer
		_, _ = plain.ReadFrom(decoder) // What follows a frame is none; what it gave before that counts.
		h.look(fmt.Sprintf("%s (compressed, at %d)", path, at), plain.Bytes())
	}
}

// processes looks at a process and all that descend from it.
func (h *hunt) processes(root int) error {
	parents := map[int]int{}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return err
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		stat, _ := os.ReadFile("/proc/" + e.Name() + "/stat") // It may have ended.
		if fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:])); len(fields) > 1 {
			parents[pid], _ = strconv.Atoi(fields[1])
		}
	}
	below := []int{root}
	for i := 0; i < len(below); i++ {
		for pid, parent := range parents {
			if parent == below[i] && !slices.Contains(below, pid) {
				below = append(below, pid)
			}
		}
	}
	// The stack, the supervisor, the worker, and what runs.
	if len(below) < 4 {
		return fmt.Errorf("only %d processes below the stack", len(below))
	}
	for _, pid := range below {
		for _, name := range []string{"cmdline", "environ"} {
			path := fmt.Sprintf("/proc/%d/%s", pid, name)
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			h.look(path, data)
		}
	}
	return nil
}
