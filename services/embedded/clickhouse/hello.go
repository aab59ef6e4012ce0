package clickhouse

import (
	"fmt"

	"github.com/ClickHouse/ch-go/proto"
	"github.com/ClickHouse/clickhouse-go/v2/lib/column"
	chproto "github.com/ClickHouse/clickhouse-go/v2/lib/proto"
)

// helloQuery is the first query of every HTTP connection of clickhouse-go. The client reads the answer at its own
// protocol revision, which a server learns from client_protocol_version, and every later answer at the revision that
// this one reports. The engine writes Native at revision 0 whatever the parameter says. So this one answer is written
// here, at the client's revision, and reports revision 0, and the client reads the engine's answers as they are.
const helloQuery = "SELECT displayName(), version(), revision(), timezone()"

// displayName is what clients show as the name of the server.
const displayName = "verbatim embedded"

func hello(revision uint64, version, zone string) ([]byte, error) {
	block := chproto.NewBlock()
	for _, c := range []struct{ name, kind string }{
		{"displayName()", "String"}, {"version()", "String"}, {"revision()", "UInt32"}, {"timezone()", "String"},
	} {
		if err := block.AddColumn(c.name, column.Type(c.kind)); err != nil {
			return nil, fmt.Errorf("make the hello block: %w", err)
		}
	}
	if err := block.Append(displayName, version, uint32(0), zone); err != nil {
		return nil, fmt.Errorf("make the hello block: %w", err)
	}
	var buf proto.Buffer
	if err := block.Encode(&buf, revision); err != nil {
		return nil, fmt.Errorf("encode the hello block: %w", err)
	}
	return buf.Buf, nil
}
