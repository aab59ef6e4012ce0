package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"

	"verbatim.dev/events"
	"verbatim.dev/events/kafka"
	"verbatim.dev/services/importer"
)

type importCommand struct {
	brokerFlags
	Folders   []string          `arg:"" name:"folder" help:"Folders that hold stdout.log, stderr.log and result.json, or some of them."`
	Recursive bool              `short:"r" help:"Import every folder below, too, that holds output."`
	Result    string            `default:"result.json" placeholder:"NAME" help:"Name of the file with the result in a folder. Default: result.json."`
	Stdout    string            `default:"stdout.log" placeholder:"NAME" help:"Name of the file with the stdout. Default: stdout.log."`
	Stderr    string            `default:"stderr.log" placeholder:"NAME" help:"Name of the file with the stderr. Default: stderr.log."`
	Action    string            `placeholder:"NAME" help:"What was run, when the result does not say it better."`
	Label     map[string]string `placeholder:"k=v" help:"Label to find them by; may be given several times."`
	DryRun    bool              `help:"Only say what would be imported."`
	JSON      bool              `name:"json" help:"Print one JSON object a folder."`
}

// Help is printed by kong below the flags.
func (importCommand) Help() string {
	return `Makes facts of what a worker without Verbatim left behind, so that it gets rows, logs and search like everything else. All bytes of
the files become output, whatever the result says; an exit code or signal in the result becomes the end, and where there is none
that can be believed the row says that the wait failed, with the result's error. The result itself is kept, too.

The bytes are published as they are: no secret in them is masked. Importing a folder twice, or again after an interruption,
changes nothing. A file that is still written to is said, and not sealed.

  verbatim import /var/jobs/4711
  verbatim import --recursive --label source=old-worker /var/jobs`
}

// importedJSON is what is said of one folder.
type importedJSON struct {
	Execution     string   `json:"execution_id"`
	Folder        string   `json:"folder"`
	StdoutBytes   uint64   `json:"stdout_bytes"`
	StderrBytes   uint64   `json:"stderr_bytes"`
	Ending        string   `json:"ending"`
	NotUnderstood []string `json:"not_understood"`
	ResultFault   *string  `json:"result_fault"`
	DryRun        bool     `json:"dry_run"`
	Error         *string  `json:"error"`
}

// Run is called by kong.
func (c *importCommand) Run(ctx context.Context, s *session) error {
	names := importer.Names{Stdout: c.Stdout, Stderr: c.Stderr, Result: c.Result}
	folders, total, err := c.folders(names)
	if err != nil {
		return err
	}
	bar := newProgress(s.stderr, "importing", "bytes")
	defer bar.done()
	done := uint64(0)
	tell := func(n uint64) {
		done += n
		bar.set(done/2, total) // Each byte is read twice: for the digest, and to be published.
	}
	table := tabwriter.NewWriter(s.stdout, 0, 0, 2, ' ', 0)
	if !c.JSON {
		fmt.Fprintln(table, "ID\tSTDOUT\tSTDERR\tEND\tFOLDER")
	}
	var failed []error
	publish := func(p importer.Publisher, topic string) error {
		for _, path := range folders {
			j := c.one(ctx, path, names, p, topic, tell)
			if ctx.Err() != nil {
				return errors.New("interrupted: the same command goes on from here")
			}
			if j.Error != nil {
				failed = append(failed, fmt.Errorf("%s: %s", path, strings.TrimPrefix(*j.Error, path+": ")))
			}
			if err := c.print(s.stdout, s.stderr, table, j); err != nil {
				return err
			}
		}
		return nil
	}
	if c.DryRun {
		err = publish(nil, "")
	} else {
		var config kafka.Config
		if config, err = c.open(s); err != nil {
			return err
		}
		err = withPublisher(config, func(p *kafka.Publisher) error { return publish(p, events.TopicExecutions) })
	}
	err = errors.Join(err, table.Flush())
	if len(failed) > 0 {
		err = errors.Join(err, fmt.Errorf("%d of %d folders were not imported:\n%w", len(failed), len(folders), errors.Join(failed...)))
	}
	return err
}

// folders lists what to import, and the bytes of its output.
func (c *importCommand) folders(names importer.Names) (folders []string, total uint64, err error) {
	folders = c.Folders
	if c.Recursive {
		folders = nil
		for _, root := range c.Folders {
			below, err := importer.Below(root, names)
			if err != nil {
				return nil, 0, err
			}
			if len(below) == 0 {
				return nil, 0, fmt.Errorf("no folder in %s holds %s or %s", root, names.Stdout, names.Stderr)
			}
			folders = append(folders, below...)
		}
	}
	for _, f := range folders {
		for _, name := range []string{names.Stdout, names.Stderr} {
			if info, err := os.Stat(filepath.Join(f, name)); err == nil {
				total += uint64(info.Size())
			}
		}
	}
	return folders, total, nil
}

// one imports one folder; without a publisher it only looks.
func (c *importCommand) one(ctx context.Context, path string, names importer.Names, p importer.Publisher, topic string, tell func(uint64)) importedJSON {
	j := importedJSON{Folder: path, NotUnderstood: []string{}, DryRun: p == nil}
	f, err := importer.Open(ctx, path, names, tell)
	if err == nil {
		j.Execution, j.Folder, j.Ending = f.Execution, f.Path, f.Ending()
		j.StdoutBytes, j.StderrBytes = f.Sizes()
		fields, fault := f.NotUnderstood()
		j.NotUnderstood = append(j.NotUnderstood, fields...)
		if fault != "" {
			j.ResultFault = &fault
		}
		if p != nil {
			err = f.Publish(ctx, topic, p, importer.Meta{Action: c.Action, Labels: c.Label}, tell)
		}
	}
	if err != nil {
		text := err.Error()
		j.Error = &text
	}
	return j
}

func (c *importCommand) print(stdout, stderr io.Writer, table *tabwriter.Writer, j importedJSON) error {
	if c.JSON {
		return writeJSON(stdout, j)
	}
	if j.ResultFault != nil {
		fmt.Fprintf(stderr, "verbatim import: %s: the result gives no facts: %s\n", j.Folder, *j.ResultFault)
	}
	if len(j.NotUnderstood) > 0 {
		fmt.Fprintf(stderr, "verbatim import: %s: kept and not understood of the result: %s\n", j.Folder, cut(strings.Join(j.NotUnderstood, ", "), 300))
	}
	if j.Error == nil {
		fmt.Fprintf(table, "%s\t%d\t%d\t%s\t%s\n", j.Execution, j.StdoutBytes, j.StderrBytes, cut(j.Ending, 60), j.Folder)
	}
	return nil
}
