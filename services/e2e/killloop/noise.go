package main

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"strconv"
	"sync"
	"time"
)

// noise is what an execution writes to a stream (1: stdout, 2: stderr), or gets on its standard input (0).
func noise(seed uint64, stream byte, n int) []byte {
	var key [32]byte
	binary.LittleEndian.PutUint64(key[:], seed)
	key[8] = stream
	data := make([]byte, n)
	_, _ = rand.NewChaCha8(key).Read(data) // It never fails.
	return data
}

// stdinBytes is the length of the standard input, longer than a pipe.
const stdinBytes = 100_000

// exitCodeOf is the known exit code of an execution. Those from complained on are for what goes wrong.
func exitCodeOf(seed uint64) int { return int(seed % complained) }

const (
	complained   = 90
	startedTwice = 91
	wrongStdin   = 92
)

// makeNoise is the process: noise SEED BYTES LASTING PROGRESS. It counts what it wrote in the file PROGRESS, which it makes.
func makeNoise(args []string) int {
	if len(args) != 4 {
		return complained
	}
	seed, err1 := strconv.ParseUint(args[0], 10, 64)
	n, err2 := strconv.Atoi(args[1])
	lasting, err3 := time.ParseDuration(args[2])
	progress, err4 := os.OpenFile(args[3], os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if os.IsExist(err4) {
		return startedTwice
	}
	for _, err := range []error{err1, err2, err3, err4} {
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return complained
		}
	}
	input := make(chan []byte, 1)
	go func() {
		data, _ := io.ReadAll(os.Stdin) // What is missing shows.
		input <- data
	}()
	var both sync.WaitGroup
	for i, f := range []*os.File{os.Stdout, os.Stderr} {
		both.Go(func() {
			if err := trickle(f, noise(seed, byte(i+1), n), lasting, progress, int64(8*i)); err != nil {
				os.Exit(complained) //nolint:forbidigo // This is a main: it plays a process that was cut off.
			}
		})
	}
	both.Wait()
	if !bytes.Equal(<-input, noise(seed, 0, stdinBytes)) {
		return wrongStdin
	}
	return exitCodeOf(seed)
}

// trickle writes in pieces of random lengths with random pauses, and counts in the file at a place.
func trickle(w io.Writer, data []byte, lasting time.Duration, progress io.WriterAt, at int64) error {
	const pieces = 150
	total, done := len(data), 0
	for done < total {
		n := min(1+rand.IntN(2*total/pieces+1), total-done)
		k, err := w.Write(data[done : done+n])
		done += k
		if _, err := progress.WriteAt(binary.LittleEndian.AppendUint64(nil, uint64(done)), at); err != nil {
			return err
		}
		if err != nil {
			return err
		}
		time.Sleep(rand.N(2*lasting/pieces + 1)) // The pace of a process that works.
	}
	return nil
}

// readProgress reads what a process has written of both streams; false when it was not started.
func readProgress(path string) (written [2]uint64, started bool) {
	data, err := os.ReadFile(path)
	if err != nil {
		return written, false
	}
	data = append(data, make([]byte, 16)...)
	for i := range written {
		written[i] = binary.LittleEndian.Uint64(data[8*i:])
	}
	return written, true
}
