// Package statement decides whether a SQL text is one statement that only reads the database.
//
// It is the outer of two fences. The inner one is ClickHouse's own readonly mode; this one gives clear
// answers and keeps readers inside the database: table functions that read files, other servers or programs are
// refused. It works on tokens as ClickHouse's lexer makes them (comments, quotes, heredocs), so that a
// name inside a string is no function and a comment hides none.
package statement

import (
	"errors"
	"fmt"
	"strings"
)

// MaxBytes bounds a statement. It is ClickHouse's max_query_size.
const MaxBytes = 256 << 10

// first are the words a reading statement begins with.
var first = words("select with show describe desc explain exists")

// leaving are functions, as a table or as a value, that reach out of the database: files of the
// server, other servers, programs. From ClickHouse's list of table functions.
var leaving = words(`
	file filecluster url urlcluster s3 s3cluster gcs gcscluster cosn oss hdfs hdfscluster
	azureblobstorage azureblobstoragecluster remote remotesecure cluster clusterallreplicas
	executable mysql postgresql mongodb redis sqlite odbc jdbc input infile
	iceberg icebergs3 icebergs3cluster icebergazure icebergazurecluster iceberghdfs iceberghdfscluster iceberglocal icebergcluster
	deltalake deltalakes3 deltalakes3cluster deltalakeazure deltalakeazurecluster deltalakelocal deltalakecluster
	hudi hudicluster paimon paimons3 paimonazure paimonhdfs paimonlocal paimoncluster paimons3cluster paimonazurecluster paimonhdfscluster
	ytsaurus arrowflight arrow_flight python dataframe loop fuzzquery dictionary kafka nats rabbitmq meilisearch hive
	catboostevaluate getserversetting`)

// inside are the table functions that stay in the database.
var inside = words(`numbers numbers_mt zeros zeros_mt generate_series generateseries primes values view merge null
	generaterandom format mergetreeindex mergetreeprojection mergetreeparts timeseriesdata timeseriestags timeseriesmetrics`)

// takingFrom are functions with a FROM of their own: trim(BOTH 'x' FROM f(y)).
var takingFrom = words("trim ltrim rtrim extract substring substr mid position overlay")

// Check returns nil for one statement that only reads the database, else what is wrong, for people.
func Check(sql string) error {
	if len(sql) > MaxBytes {
		return fmt.Errorf("the statement has %d bytes, the limit is %d", len(sql), MaxBytes)
	}
	tokens, err := scan(sql)
	if err != nil {
		return err
	}
	for len(tokens) > 0 && tokens[len(tokens)-1].is(";") {
		tokens = tokens[:len(tokens)-1]
	}
	begin := 0
	for begin < len(tokens) && tokens[begin].is("(") {
		begin++
	}
	if begin == len(tokens) {
		return errors.New("there is no statement")
	}
	if t := tokens[begin]; t.kind != bare || !first[t.lower()] {
		return errors.New("only SELECT, WITH, SHOW, DESCRIBE, EXPLAIN and EXISTS are answered here")
	}
	return check(tokens)
}

func check(tokens []token) error {
	var calls []string // The function of each open parenthesis, "" for a plain one.
	at := func(i int) token {
		if i < 0 || i >= len(tokens) {
			return token{}
		}
		return tokens[i]
	}
	for i, t := range tokens {
		before, after := at(i-1), at(i+1)
		switch {
		case t.is(";"):
			return errors.New("one statement at a time")
		case t.is("("):
			calls = append(calls, before.name())
		case t.is(")"):
			if len(calls) > 0 {
				calls = calls[:len(calls)-1]
			}
		case t.kind == bare && t.lower() == "outfile":
			return errors.New("INTO OUTFILE writes a file on the server")
		case t.kind == bare && (t.lower() == "from" || t.lower() == "join") && after.kind == text:
			return errors.New("a file cannot be read as a table")
		case t.name() != "" && after.is("("):
			if leaving[t.name()] {
				return fmt.Errorf("%s reaches out of the database", t.value)
			}
			own := len(calls) > 0 && takingFrom[calls[len(calls)-1]]
			if table := before.kind == bare && (before.lower() == "from" || before.lower() == "join"); table && !own && !inside[t.name()] {
				return fmt.Errorf("the table function %s is not among those that stay in the database", t.value)
			}
		case t.kind == quoted && (before.lower() == "from" || before.lower() == "join" || before.is(",")) && strings.ContainsAny(t.value, "/\\*?{"):
			return errors.New("a file cannot be read as a table")
		}
	}
	return nil
}

func words(s string) map[string]bool {
	m := map[string]bool{}
	for _, w := range strings.Fields(s) {
		m[w] = true
	}
	return m
}
