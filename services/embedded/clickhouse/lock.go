package clickhouse

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// folderLock keeps a second process from opening the same data folder. The kernel drops it when the process dies, so a
// killed process leaves nothing to clean up.
type folderLock struct{ file *os.File }

// lockFolder takes dir for this process, or tells who has it.
func lockFolder(dir string) (*folderLock, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("create the data folder: %w", err)
	}
	file, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the lock of the data folder: %w", err)
	}
	if err := unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		defer file.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("the data folder %s is in use by %s", dir, lockHolder(file))
		}
		return nil, fmt.Errorf("lock the data folder %s: %w", dir, err)
	}
	holder := fmt.Sprintf("process %d (%s)\n", os.Getpid(), strings.Join(os.Args[:1], " "))
	if err := errors.Join(file.Truncate(0), writeAt(file, holder)); err != nil {
		return nil, errors.Join(fmt.Errorf("write the lock of the data folder: %w", err), file.Close())
	}
	return &folderLock{file}, nil
}

func writeAt(file *os.File, s string) error {
	_, err := file.WriteAt([]byte(s), 0)
	return err
}

func lockHolder(file *os.File) string {
	note, err := io.ReadAll(io.LimitReader(file, 4096))
	if err != nil || len(note) == 0 {
		return "another process"
	}
	return strings.TrimSpace(string(note))
}

func (l *folderLock) release() error { return l.file.Close() }
