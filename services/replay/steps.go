package replay

import (
	"errors"
	"fmt"
	"reflect"
	"strings"
	"time"

	"verbatim.dev/events"
	"verbatim.dev/projections/execution"
)

// MaxStepBytes bounds the payloads that Steps holds.
const MaxStepBytes = 256 << 20

// ErrTooMany says that an execution's events are more than MaxStepBytes.
var ErrTooMany = errors.New("the events are too many to step through")

// Steps is one execution event by event: the row after each of them.
type Steps struct {
	id      string
	facts   []Fact
	changed [][]string // column names, by event
	bytes   int
	last    execution.Row
	state   *execution.State
}

// NewSteps returns the steps of an execution of which no event was added yet.
func NewSteps(id string) *Steps {
	s := &Steps{id: id, state: execution.New(id)}
	s.last = s.state.Row()
	return s
}

// Add adds the next event.
func (s *Steps) Add(e events.Event, receivedAt time.Time) error {
	if s.bytes += len(e.Payload) + 256; s.bytes > MaxStepBytes {
		return fmt.Errorf("%w: more than %d MiB", ErrTooMany, MaxStepBytes>>20)
	}
	s.facts = append(s.facts, Fact{e, receivedAt})
	s.state.Apply(e, receivedAt)
	row := s.state.Row()
	s.changed = append(s.changed, changes(s.last, row))
	s.last = row
	return nil
}

// Len is the number of events.
func (s *Steps) Len() int { return len(s.facts) }

// Fact is the event of a step, from 1.
func (s *Steps) Fact(step int) Fact { return s.facts[step-1] }

// Changed are the columns that a step changed, in the order of the row.
func (s *Steps) Changed(step int) []string { return s.changed[step-1] }

// Row is the row after a step; after step 0 nothing is known.
func (s *Steps) Row(step int) execution.Row {
	if step == len(s.facts) {
		return s.last
	}
	state := execution.New(s.id)
	for _, f := range s.facts[:step] {
		state.Apply(f.Event, f.ReceivedAt)
	}
	return state.Row()
}

// Columns are the names of a row's columns.
func Columns() []string {
	var names []string
	for f := range reflect.TypeFor[execution.Row]().Fields() {
		names = append(names, columnOf(f))
	}
	return names
}

func columnOf(f reflect.StructField) string {
	name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
	return name
}

// Value is a column of a row; nil when there is no such column.
func Value(r execution.Row, column string) any {
	v := reflect.ValueOf(r)
	for i := range v.NumField() {
		if columnOf(v.Type().Field(i)) == column {
			return v.Field(i).Interface()
		}
	}
	return nil
}

func changes(a, b execution.Row) []string {
	var names []string
	x, y := reflect.ValueOf(a), reflect.ValueOf(b)
	for i := range x.NumField() {
		if !reflect.DeepEqual(x.Field(i).Interface(), y.Field(i).Interface()) {
			names = append(names, columnOf(x.Type().Field(i)))
		}
	}
	return names
}
