package cli

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"verbatim.dev/services/gateway/api"
)

// limitFlags bound a process.
type limitFlags struct {
	Limit              map[string]string `mapsep:"none" placeholder:"NAME=VALUE" help:"Bound the process; may be given again. All its processes together: memory=512MiB, cpu=0.5 (processors), pids=100. Each process, as ulimit does it: nofile, nproc, fsize, cputime (30s), as, core."`
	User               string            `placeholder:"USER" help:"Who the process is: a name or number on the runner, which has to run as root. Default: the runner's user."`
	Group              string            `placeholder:"GROUP" help:"Its group in place of the user's own."`
	Umask              string            `placeholder:"OCTAL" help:"Its umask, for example 027. Default: the runner's."`
	AllowNewPrivileges bool              `help:"Let set-user-ID programs such as sudo gain privileges, which they do not by default."`
}

// limits makes the request's limits; nil when none were given.
func (f limitFlags) limits() (*api.Limits, error) {
	l := &api.Limits{User: f.User, Group: f.Group, Umask: f.Umask, AllowNewPrivileges: f.AllowNewPrivileges}
	sizes := map[string]**uint64{"memory": &l.MemoryBytes, "fsize": &l.FileSizeBytes, "as": &l.AddressSpaceBytes, "core": &l.CoreBytes}
	counts := map[string]**uint64{"pids": &l.Processes, "nofile": &l.OpenFiles, "nproc": &l.UserProcesses}
	names := make([]string, 0, len(f.Limit))
	for name := range f.Limit {
		names = append(names, name)
	}
	slices.Sort(names)
	var errs []error
	for _, name := range names {
		text := f.Limit[name]
		var value uint64
		var err error
		into := sizes[name]
		switch {
		case into != nil:
			value, err = parseSize(text)
		case counts[name] != nil:
			into = counts[name]
			if value, err = strconv.ParseUint(text, 10, 64); err != nil {
				err = errors.New("it must be a number")
			}
		case name == "cpu":
			into = &l.CPUMillis
			value, err = parseProcessors(text)
		case name == "cputime":
			into = &l.CPUSeconds
			value, err = parseSeconds(text)
		default:
			err = errors.New("there is no such limit; there are memory, cpu, pids, nofile, nproc, fsize, cputime, as and core")
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("--limit %s=%s: %w", name, text, err))
			continue
		}
		*into = &value
	}
	if f.Umask != "" {
		if mask, err := strconv.ParseUint(f.Umask, 8, 32); err != nil || mask > 0o777 {
			errs = append(errs, fmt.Errorf("--umask %s: it must be an octal number of at most 777", f.Umask))
		}
	}
	if len(f.Limit) == 0 && f.User == "" && f.Group == "" && f.Umask == "" && !f.AllowNewPrivileges {
		return nil, nil
	}
	return l, errors.Join(errs...)
}

// parseSize reads a size in bytes: a number with or without a unit of 1000 (KB, MB …) or 1024 (KiB, MiB …).
func parseSize(text string) (uint64, error) {
	number := strings.TrimRight(text, "KMGTiB")
	units := map[string]uint64{
		"": 1, "B": 1, "KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40,
	}
	unit, known := units[text[len(number):]]
	value, err := strconv.ParseFloat(number, 64)
	if !known || err != nil || value < 0 || value*float64(unit) >= math.MaxInt64 || math.IsNaN(value) {
		return 0, errors.New(`it must be a size such as 512MiB or 1000000`)
	}
	return uint64(value * float64(unit)), nil
}

func parseProcessors(text string) (uint64, error) {
	value, err := strconv.ParseFloat(text, 64)
	if err != nil || !(value > 0 && value < 1e6) {
		return 0, errors.New("it must be a number of processors such as 0.5 or 2")
	}
	return uint64(math.Round(value * 1000)), nil
}

func parseSeconds(text string) (uint64, error) {
	if n, err := strconv.ParseUint(text, 10, 32); err == nil {
		return n, nil
	}
	d, err := time.ParseDuration(text)
	if err != nil || d < time.Second || d%time.Second != 0 {
		return 0, errors.New("it must be whole seconds, such as 30s or 2m")
	}
	return uint64(d / time.Second), nil
}
