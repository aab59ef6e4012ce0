package gateway_test

import (
	"net/http"
	"testing"
	"time"

	"verbatim.dev/services/gateway/api"
)

// A client that rather waits than reads what is old says so, and one that does not want to wait, too.
func TestAReadWaitsAsLongAsItPrefers(t *testing.T) {
	t.Parallel()
	for _, path := range []string{"", "/v1/executions", "/v1/query"} {
		t.Run(path, func(t *testing.T) {
			t.Parallel()
			s, story := start(t), newStory(t)
			s.append(story.requested())
			s.store()
			s.append(story.started())
			read := func(prefer string) (stale string, took time.Duration) {
				begin := time.Now()
				var a answer
				switch path {
				case "":
					a = s.do("GET", "/v1/executions/"+story.id, nil, "Prefer", prefer)
				case "/v1/query":
					a = s.do("POST", path, object{"sql": "SELECT 1"}, "Prefer", prefer)
				default:
					a = s.do("GET", path, nil, "Prefer", prefer)
				}
				if a.StatusCode != http.StatusOK {
					t.Errorf("Prefer: %s: %d %s", prefer, a.StatusCode, a.body)
				}
				return a.Header.Get(api.HeaderStale), time.Since(begin)
			}
			if stale, _ := read("wait=0"); stale == "" {
				t.Error("wait=0 waited")
			}
			// What is no such preference is as if it was not there, and the usual time is at least a second.
			for _, prefer := range []string{"wait=soon", "wait=-1", "respond-async", ""} {
				if stale, took := read(prefer); stale == "" || took < time.Second {
					t.Errorf("Prefer: %s: stale %q after %s", prefer, stale, took)
				}
			}
			time.AfterFunc(3*time.Second, s.store) // Later than any read waits by itself.
			if stale, took := read(`return=minimal, Wait="50"; x=y`); stale != "" || took > 40*time.Second {
				t.Errorf("stale %q after %s", stale, took)
			}
		})
	}
}
