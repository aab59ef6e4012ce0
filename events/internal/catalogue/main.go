// Command catalogue writes docs/events.md: every event with its fields, as the comments of the .proto files say.
// It reads a descriptor set with source information on standard input:
//
//	buf build events/proto --as-file-descriptor-set -o - | go run ./events/internal/catalogue >docs/events.md
package main

import (
	"cmp"
	"fmt"
	"io"
	"os"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/descriptorpb"

	"verbatim.dev/events"
)

func main() {
	if err := run(os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "catalogue:", err)
		os.Exit(1)
	}
}

func run(in io.Reader, out io.Writer) error {
	raw, err := io.ReadAll(in)
	if err != nil {
		return fmt.Errorf("read descriptors: %w", err)
	}
	var set descriptorpb.FileDescriptorSet
	if err := proto.Unmarshal(raw, &set); err != nil {
		return fmt.Errorf("decode descriptors: %w", err)
	}
	files, err := protodesc.NewFiles(&set)
	if err != nil {
		return fmt.Errorf("resolve descriptors: %w", err)
	}
	var b strings.Builder
	b.WriteString(`# Events

Written by ` + "`make generate`" + ` from [the payloads](../events/proto/verbatim/execution/v1); do not edit.

Every event is a CloudEvent 1.0 on Kafka. Its attributes are the headers ` + "`ce_specversion` (1.0), `ce_id`, `ce_source`, `ce_type`, `ce_subject` (the execution), `ce_time`, `ce_attempt`, `ce_sequence`, `ce_partitionkey`" + ` (equal to the subject)
and, where there is one, ` + "`ce_traceparent`" + `; the header ` + "`content-type`" + ` is ` + "`application/protobuf`" + ` or ` + "`application/json`" + `. The record's key is the subject.
What a producer writes counts when it is in the log, also in a transaction: what it aborts later is not taken back.

| topic | partitions |
| --- | --- |
`)
	for _, t := range events.Topics() {
		fmt.Fprintf(&b, "| `%s` | %d |\n", t.Name, t.Partitions)
	}
	shown := map[protoreflect.FullName]bool{}
	var parts []protoreflect.MessageDescriptor
	for _, typ := range events.Types() {
		payload, _ := events.NewPayload(typ)
		m, err := find(files, payload.ProtoReflect().Descriptor().FullName())
		if err != nil {
			return err
		}
		fmt.Fprintf(&b, "\n## %s\n\n`%s`\n\n", m.Name(), typ)
		parts = append(parts, message(&b, m)...)
		shown[m.FullName()] = true
	}
	b.WriteString("\n# Parts of events\n")
	for len(parts) > 0 {
		m := parts[0]
		parts = parts[1:]
		if !shown[m.FullName()] && m.ParentFile().Package() == "verbatim.execution.v1" && !m.IsMapEntry() {
			shown[m.FullName()] = true
			fmt.Fprintf(&b, "\n## %s\n\n", m.Name())
			parts = append(parts, message(&b, m)...)
		}
	}
	_, err = io.WriteString(out, b.String())
	return err
}

func find(files *protoregistry.Files, name protoreflect.FullName) (protoreflect.MessageDescriptor, error) {
	d, err := files.FindDescriptorByName(name)
	if err != nil {
		return nil, fmt.Errorf("find %s: %w", name, err)
	}
	return d.(protoreflect.MessageDescriptor), nil
}

// message writes a message and returns the messages it is made of.
func message(b *strings.Builder, m protoreflect.MessageDescriptor) (parts []protoreflect.MessageDescriptor) {
	fmt.Fprintf(b, "%s\n", comment(m))
	if m.Fields().Len() == 0 {
		return nil
	}
	b.WriteString("\n| field | type | says |\n| --- | --- | --- |\n")
	for i := range m.Fields().Len() {
		f := m.Fields().Get(i)
		says := strings.ReplaceAll(comment(f), "\n", " ")
		if e := f.Enum(); e != nil {
			var values []string
			for j := 1; j < e.Values().Len(); j++ {
				values = append(values, "`"+string(e.Values().Get(j).Name())+"`")
			}
			says = strings.TrimSpace(says + " " + strings.Join(values, ", "))
		}
		fmt.Fprintf(b, "| `%s` | %s | %s |\n", f.Name(), kind(f), cmp.Or(says, "-"))
		if f.Message() != nil {
			parts = append(parts, f.Message())
		}
	}
	return parts
}

func kind(f protoreflect.FieldDescriptor) string {
	name := f.Kind().String()
	switch {
	case f.IsMap():
		return "map of string to " + f.MapValue().Kind().String()
	case f.Message() != nil:
		name = string(f.Message().Name())
	case f.Enum() != nil:
		name = string(f.Enum().Name())
	}
	if f.IsList() {
		return "list of " + name
	}
	return name
}

func comment(d protoreflect.Descriptor) string {
	return strings.TrimSpace(strings.ReplaceAll(d.ParentFile().SourceLocations().ByDescriptor(d).LeadingComments, "\n ", "\n"))
}
