package clickhouse

import (
	"errors"
	"io"
	"mime"
	"mime/multipart"
	"net/http"
	"os"
	"strings"
)

// externalTable is a temporary table that a request brings along as a part of a multipart form.
// https://clickhouse.com/docs/engines/table-engines/special/external-data
type externalTable struct {
	name string
	data *os.File // in the spool, already unlinked
}

// maxForm bounds a multipart form, in bytes; ClickHouse's default of http_max_multipart_form_data_size.
const maxForm = 1 << 30

func isMultipart(r *http.Request) bool {
	kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	return err == nil && kind == "multipart/form-data"
}

// readMultipart takes the fields of a form as parameters, its field `query` as the query, and its files as tables.
func (q *request) readMultipart(body io.Reader, query *string) error {
	_, attributes, err := mime.ParseMediaType(q.http.Header.Get("Content-Type"))
	if err != nil {
		return raise(codeBadArguments, "BAD_ARGUMENTS", "Cannot parse the content type: %s", err)
	}
	form := multipart.NewReader(io.LimitReader(body, maxForm), attributes["boundary"])
	for {
		part, err := form.NextPart()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return q.inputError(err)
		}
		if err := q.readPart(part, query); err != nil {
			return err
		}
	}
}

func (q *request) readPart(part *multipart.Part, query *string) error {
	name := part.FormName()
	if part.FileName() != "" || isTablePart(part) {
		return q.spoolTable(name, part)
	}
	text, err := io.ReadAll(io.LimitReader(part, maxStatement))
	if err != nil {
		return q.inputError(err)
	}
	if name == "query" {
		*query += string(text)
		return nil
	}
	q.params.Set(name, string(text))
	return nil
}

// isTablePart recognises a file by its filename attribute, which clickhouse-go leaves empty.
func isTablePart(part *multipart.Part) bool {
	_, attributes, err := mime.ParseMediaType(part.Header.Get("Content-Disposition"))
	_, file := attributes["filename"]
	return err == nil && file
}

func (q *request) spoolTable(name string, data io.Reader) error {
	if !settingName.MatchString(name) {
		return raise(codeBadArguments, "BAD_ARGUMENTS", "The name of an external table is not an identifier: '%s'", name)
	}
	file, err := newSpoolFile(spoolFolder(q.http))
	if err != nil {
		return err
	}
	q.closers = append(q.closers, func() { _ = file.Close() })
	if _, err := io.Copy(file, data); err != nil {
		return q.inputError(err)
	}
	if _, err := file.Seek(0, io.SeekStart); err != nil {
		return err
	}
	q.tables = append(q.tables, externalTable{name, file})
	return nil
}

// isTableParam recognises NAME_format, NAME_structure and NAME_types of an external table.
func (q *request) isTableParam(name string) bool {
	for _, t := range q.tables {
		if suffix, ok := strings.CutPrefix(name, t.name); ok && (suffix == "_format" || suffix == "_structure" || suffix == "_types") {
			return true
		}
	}
	return false
}

// createTables makes the external tables on the connection of the query.
func (q *request) createTables(c *conn) error {
	for _, t := range q.tables {
		structure := q.params.Get(t.name + "_structure")
		if structure == "" {
			return raise(codeBadArguments, "BAD_ARGUMENTS", "Neither structure nor types have not been provided for external table %s", t.name)
		}
		if s := parseStatement([]byte(structure)); s.forbidden != nil {
			return s.forbidden
		}
		if err := c.exec("CREATE TEMPORARY TABLE " + quoteIdentifier(t.name) + " (" + structure + ")"); err != nil {
			return err
		}
		format := first(q.params.Get(t.name+"_format"), "TabSeparated")
		if !settingName.MatchString(format) {
			return raise(codeUnknownFormat, "UNKNOWN_FORMAT", "Unknown format %s", format)
		}
		stream, err := c.insert("INSERT INTO "+quoteIdentifier(t.name), format, nil)
		if err != nil {
			return err
		}
		if _, err := q.feed(stream, t.data); err != nil {
			return err
		}
	}
	return nil
}
