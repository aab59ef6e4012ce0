package gateway_test

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"testing"
	"time"

	"verbatim.dev/services/gateway"
)

// More slow readers than the database has connections, and rows and outputs are read as ever.
func TestSlowReadersHoldNoConnection(t *testing.T) {
	t.Parallel()
	const readers = 20 // The database has fewer connections for reads. More would be cut off before the last is held, where it is slow.
	s := start(t, func(c *gateway.Config) { c.MaxDownloads = readers })
	story, want := s.sealedOutput(t, 2_000_000, 1<<20) // 20 MB: several parts, more than sockets buffer.
	path := "/v1/executions/" + story.id
	var held []io.Closer
	for i := range readers {
		kind := path + "/output/stdout"
		if i%3 == 0 {
			kind = path + "/events"
		}
		resp, err := http.Get(s.url + kind)
		if err != nil {
			t.Fatal(err)
		}
		if resp.StatusCode != http.StatusOK {
			t.Fatalf("%d: %s", i, resp.Status)
		}
		held = append(held, resp.Body)
	}
	s.do("GET", path+"/output/stdout", nil).problem(t, http.StatusServiceUnavailable, fmt.Sprint(readers))
	s.do("GET", path+"/events", nil).problem(t, http.StatusServiceUnavailable, fmt.Sprint(readers))
	if _, name, _ := s.tail(t, story.id).next(); name != "ExecutionRequested" {
		t.Errorf("a tail beside slow readers begins with %q", name)
	}
	for _, c := range held {
		c.Close()
	}
	deadline := time.Now().Add(60 * time.Second)
	for {
		a := s.do("GET", path+"/output/stdout", nil)
		if a.StatusCode == http.StatusOK {
			if !bytes.Equal(a.body, want) {
				t.Error("an output in several parts is wrong")
			}
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the place of readers that are gone is not given back")
		}
	}
	for _, at := range []int{8<<20 - 1, 8 << 20, 16<<20 + 5} {
		if a := s.do("GET", path+"/output/stdout", nil, "Range", fmt.Sprintf("bytes=%d-", at)); !bytes.Equal(a.body, want[at:]) {
			t.Errorf("from byte %d on it is wrong", at)
		}
	}
}
