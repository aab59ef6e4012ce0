// Package telemetry says how a process is doing: its log, its metrics, and whether it is alive and ready.
package telemetry

import (
	"fmt"
	"io"
	"log/slog"
	"os"
	"time"

	"github.com/lmittmann/tint"
	"golang.org/x/sys/unix"
)

// LogConfig says how to log.
type LogConfig struct {
	// Level is debug, info, warn or error.
	Level string
	// Format is auto, text or json. auto is text for people, with colours on a terminal only.
	Format string
}

// NewLogger returns a logger that writes to w.
func NewLogger(c LogConfig, w io.Writer) (*slog.Logger, error) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(c.Level)); err != nil {
		return nil, fmt.Errorf("log level %q is not debug, info, warn or error", c.Level)
	}
	switch c.Format {
	case "auto", "text":
		return slog.New(tint.NewTextHandler(w, &tint.Options{
			Level: level, TimeFormat: time.TimeOnly + ".000", NoColor: c.Format == "text" || !IsTerminal(w),
		})), nil
	case "json":
		return slog.New(slog.NewJSONHandler(w, &slog.HandlerOptions{Level: level})), nil
	default:
		return nil, fmt.Errorf("log format %q is not auto, text or json", c.Format)
	}
}

// IsTerminal reports whether w is a terminal. NO_COLOR (https://no-color.org) makes it a plain one.
func IsTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok || os.Getenv("NO_COLOR") != "" || os.Getenv("TERM") == "dumb" {
		return false
	}
	_, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ)
	return err == nil
}
