package gateway_test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"verbatim.dev/services/gateway"
)

const token = "a-token-of-more-than-16-characters"

func TestOnlyThisMachineIsAnsweredWithoutAToken(t *testing.T) {
	t.Parallel()
	s := start(t)
	_, port, _ := net.SplitHostPort(s.Addr())
	for host, ok := range map[string]bool{
		"localhost": true, "LOCALHOST:" + port: true, "127.0.0.1:1": true, "[::1]:" + port: true, "[::1]": true,
		"evil.example": false, "127.0.0.1.evil.example": false, "localhost.evil.example:" + port: false, "10.0.0.1": false,
	} {
		a := s.do("GET", "/v1/executions", nil, "Host", host)
		if ok && a.StatusCode != http.StatusOK {
			t.Errorf("%s: %d %s", host, a.StatusCode, a.body)
		}
		if !ok {
			a.problem(t, http.StatusForbidden, "Host")
			s.do("POST", "/v1/executions", command("x"), "Host", host).problem(t, http.StatusForbidden)
		}
	}
}

func TestNoPageOfAnotherOriginStartsProcesses(t *testing.T) {
	t.Parallel()
	s := start(t)
	for _, h := range [][]string{
		{"Origin", "https://evil.example"},
		{"Origin", "null"},
		{"Origin", "http://localhost:1"},
		{"Sec-Fetch-Site", "cross-site"},
		{"Sec-Fetch-Site", "same-site"},
	} {
		s.do("POST", "/v1/executions", command("x"), h...).problem(t, http.StatusForbidden, "origin")
		s.do("POST", "/v1/query", object{"sql": "SELECT 1"}, h...).problem(t, http.StatusForbidden)
	}
	if len(s.requests) != 0 {
		t.Error("one was accepted")
	}
	if a := s.do("POST", "/v1/executions", command("x"), "Origin", s.url); a.StatusCode != http.StatusAccepted {
		t.Errorf("the own origin: %d %s", a.StatusCode, a.body)
	}
	if a := s.do("GET", "/v1/executions", nil, "Origin", "https://evil.example"); a.Header.Get("Access-Control-Allow-Origin") != "" {
		t.Error("a page of another origin may read")
	}
}

func TestWithATokenNothingIsAnsweredWithoutIt(t *testing.T) {
	t.Parallel()
	s := start(t, func(c *gateway.Config) { c.Token, c.Addr = token, "0.0.0.0:0" })
	_, port, _ := net.SplitHostPort(s.Addr())
	s.url = "http://127.0.0.1:" + port
	for _, path := range []string{"/", "/readyz", "/metrics", "/openapi.json", "/v1/executions", "/nothing"} {
		s.do("GET", path, nil).problem(t, http.StatusUnauthorized, "token")
		for _, wrong := range []string{"Bearer ", "Bearer x", token, "Basic " + token, "Bearer " + token + "x", "bearer" + token} {
			s.do("GET", path, nil, "Authorization", wrong).problem(t, http.StatusUnauthorized)
		}
	}
	if a := s.do("GET", "/livez", nil); a.StatusCode != http.StatusOK {
		t.Errorf("/livez: %d", a.StatusCode)
	}
	if a := s.do("GET", "/v1/executions", nil, "Authorization", "Bearer "+token, "Host", "verbatim.example"); a.StatusCode != http.StatusOK {
		t.Errorf("with the token: %d %s", a.StatusCode, a.body)
	}
}

func TestLargeBodiesAreRefusedAtOnce(t *testing.T) {
	t.Parallel()
	s := start(t)
	for name, head := range map[string]string{
		"length said": fmt.Sprintf("Content-Length: %d", 20<<20), // Nothing is read at all.
		"no length":   "Transfer-Encoding: chunked",
	} {
		t.Run(name, func(t *testing.T) {
			c, err := net.Dial("tcp", s.Addr())
			if err != nil {
				t.Fatal(err)
			}
			if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
				t.Fatal(err)
			}
			fmt.Fprintf(c, "POST /v1/executions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n%s\r\n\r\n", head)
			var sending sync.WaitGroup
			defer sending.Wait()
			defer c.Close()
			if strings.Contains(head, "chunked") {
				sending.Go(func() {
					chunk := fmt.Sprintf("10000\r\n%s\r\n", strings.Repeat(" ", 0x10000))
					for err := error(nil); err == nil; _, err = io.WriteString(c, chunk) {
						continue // Endless, until nobody reads it.
					}
				})
			}
			resp, err := http.ReadResponse(bufio.NewReader(c), nil)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			body, err := io.ReadAll(resp.Body)
			if err != nil || resp.StatusCode != http.StatusRequestEntityTooLarge || resp.Header.Get("Content-Type") != "application/problem+json" || !strings.Contains(string(body), "large") {
				t.Errorf("%d %s %s: %v", resp.StatusCode, resp.Header.Get("Content-Type"), body, err)
			}
		})
	}
}

func TestManyLargeBodiesAtOnceAreRefused(t *testing.T) {
	t.Parallel()
	s := start(t, func(c *gateway.Config) { c.MaxBody = 1000 })
	// Eight fit, whichever they are; the one that does not is told so, and the others wait for the rest of their body.
	var held []net.Conn
	refused := make(chan string, 9)
	var reading sync.WaitGroup
	for range 9 {
		c, err := net.Dial("tcp", s.Addr())
		if err != nil {
			t.Fatal(err)
		}
		held = append(held, c)
		fmt.Fprintf(c, "POST /v1/executions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\nContent-Type: application/json\r\n\r\n{")
		reading.Go(func() {
			resp, err := http.ReadResponse(bufio.NewReader(c), nil)
			if err != nil {
				return // Closed below, unanswered.
			}
			defer resp.Body.Close()
			body, _ := io.ReadAll(resp.Body)
			refused <- fmt.Sprintf("%d %s", resp.StatusCode, body)
		})
	}
	select {
	case a := <-refused:
		if !strings.HasPrefix(a, "503 ") || !strings.Contains(a, "large") {
			t.Errorf("the ninth: %s", a)
		}
	case <-time.After(30 * time.Second):
		t.Error("nine bodies of the largest size are under way, and none was refused")
	}
	s.do("POST", "/v1/executions", command("x")).problem(t, http.StatusServiceUnavailable, "large")
	for _, c := range held {
		c.Close()
	}
	reading.Wait()
	if n := len(refused); n > 0 {
		t.Errorf("%d more were answered: %s", n, <-refused)
	}
	for deadline := time.Now().Add(30 * time.Second); ; {
		if a := s.do("POST", "/v1/executions", command("x")); a.StatusCode == http.StatusAccepted {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the room of gone clients is not given back")
		}
	}
}

func TestUnknownPathsAndMethodsAreProblems(t *testing.T) {
	t.Parallel()
	s := start(t)
	s.do("GET", "/nothing", nil).problem(t, http.StatusNotFound, "openapi")
	s.do("GET", "/v1/executions/a/b/c", nil).problem(t, http.StatusNotFound)
	s.do("GET", "/docs", nil).problem(t, http.StatusNotFound)
	a := s.do("DELETE", "/v1/executions", nil)
	a.problem(t, http.StatusMethodNotAllowed, "POST")
	if !strings.Contains(a.Header.Get("Allow"), "GET") {
		t.Errorf("Allow is %q", a.Header.Get("Allow"))
	}
	s.do("GET", "/v1/query", nil).problem(t, http.StatusMethodNotAllowed)
}

func TestTheAPIIsDescribed(t *testing.T) {
	t.Parallel()
	s := start(t)
	var doc struct {
		OpenAPI string
		Paths   map[string]any
	}
	a := s.do("GET", "/openapi.json", nil)
	if err := json.Unmarshal(a.body, &doc); err != nil || !strings.HasPrefix(doc.OpenAPI, "3.1") {
		t.Errorf("%d, %s", a.StatusCode, doc.OpenAPI)
	}
	for _, path := range []string{
		"/v1/executions", "/v1/executions/{id}", "/v1/executions/{id}/cancel", "/v1/executions/{id}/events", "/v1/executions/{id}/output/{stream}",
		"/v1/executions/{id}/tail", "/v1/query", "/v1/runners", "/v1/stdin",
	} {
		if doc.Paths[path] == nil {
			t.Errorf("%s is not described", path)
		}
	}
}

func TestHealthSaysWhatDoesNotWork(t *testing.T) {
	t.Parallel()
	s := start(t)
	a := s.do("GET", "/readyz", nil)
	if a.StatusCode != http.StatusOK || !strings.Contains(string(a.body), `"ready":true`) {
		t.Errorf("%d %s", a.StatusCode, a.body)
	}
	s.answers(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusBadGateway) })
	a = s.do("GET", "/readyz", nil)
	if a.StatusCode != http.StatusServiceUnavailable || !strings.Contains(string(a.body), `{"name":"clickhouse_http","ok":false,"error"`) ||
		!strings.Contains(string(a.body), `{"name":"kafka","ok":true}`) || strings.Contains(string(a.body), "hidden") {
		t.Errorf("%d %s", a.StatusCode, a.body)
	}
	if m := s.do("GET", "/metrics", nil); !strings.Contains(string(m.body), `verbatim_gateway_request_seconds_count{route="GET /readyz",status="503"} 1`) {
		t.Errorf("metrics:\n%s", m.body)
	}
}
