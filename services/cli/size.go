package cli

import (
	"fmt"
	"math"
	"strconv"
	"strings"
)

// size is a number of bytes on the command line: 500, 64K, 10MiB, 2G. Units are powers of 1024.
type size uint64

// UnmarshalText is called by kong.
func (s *size) UnmarshalText(text []byte) error {
	number := strings.TrimRight(string(text), "KMGTiBkb")
	unit := strings.ToUpper(strings.TrimPrefix(string(text), number))
	factors := map[string]uint64{"": 1, "B": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
	factor, known := factors[strings.TrimSuffix(strings.TrimSuffix(unit, "IB"), "B")]
	n, err := strconv.ParseUint(number, 10, 64)
	if err != nil || !known || n > math.MaxInt64/factor {
		return fmt.Errorf("%q is no size like 500, 64K, 10MiB or 2G", text)
	}
	*s = size(n * factor)
	return nil
}

// MarshalText is the inverse of UnmarshalText.
func (s size) MarshalText() ([]byte, error) { return strconv.AppendUint(nil, uint64(s), 10), nil }

// outputLimit is a size or "none".
type outputLimit struct {
	none  bool
	bytes size
}

// UnmarshalText is called by kong.
func (l *outputLimit) UnmarshalText(text []byte) error {
	if string(text) == "none" {
		*l = outputLimit{none: true}
		return nil
	}
	if err := l.bytes.UnmarshalText(text); err != nil {
		return fmt.Errorf("%w, and not none", err)
	}
	if l.bytes == 0 {
		return fmt.Errorf("0 bytes of output are none at all: at least 1, or none for no limit")
	}
	return nil
}

// request is the limit as a request says it.
func (l *outputLimit) request() int64 {
	switch {
	case l == nil:
		return 0
	case l.none:
		return -1
	}
	return int64(l.bytes)
}
