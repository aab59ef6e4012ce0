package gateway_test

import (
	"net/http"
	"regexp"
	"strings"
	"testing"

	"verbatim.dev/events"
	executionv1 "verbatim.dev/events/proto/verbatim/execution/v1"
)

func TestPagesShowTextAndLoadNothingFromElsewhere(t *testing.T) {
	t.Parallel()
	s, story := start(t), newStory(t)
	if a := s.do("GET", "/", nil); a.StatusCode != http.StatusOK || !strings.Contains(string(a.body), "Nothing has run yet") {
		t.Errorf("%d %s", a.StatusCode, a.body)
	}
	hostile := `<script>alert(1)</script>"'><img src=x>`
	e, err := events.Producer{Name: "gateway", Source: "/verbatim/gateway"}.Event(story.id, 0, 1, story.requested().Time, &executionv1.ExecutionRequested{
		What:   &executionv1.ExecutionRequested_Command{Command: &executionv1.Command{Argv: []string{"echo", hostile}}},
		Labels: map[string]string{hostile: hostile}, RequestedBy: hostile,
	})
	if err != nil {
		t.Fatal(err)
	}
	s.append(e, story.started(), story.out(0, hostile), story.event(&executionv1.WaitFailed{Cause: hostile}), story.sealed(uint64(len(hostile))))
	s.store()
	outside := regexp.MustCompile(`(?i)(src|href)="?(https?:|//|data:|javascript:)`)
	for _, path := range []string{"/", "/executions/" + story.id} {
		a := s.do("GET", path, nil)
		page := string(a.body)
		if a.StatusCode != http.StatusOK || !strings.HasPrefix(a.Header.Get("Content-Type"), "text/html") || !strings.Contains(page, story.id) {
			t.Errorf("%s: %d %s", path, a.StatusCode, a.body)
		}
		if strings.Contains(page, "<script>alert") || strings.Contains(page, "<img") || outside.MatchString(page) {
			t.Errorf("%s: %s", path, page)
		}
		policy := a.Header.Get("Content-Security-Policy")
		if !strings.Contains(policy, "default-src 'none'") || strings.Contains(policy, "unsafe") {
			t.Errorf("%s: policy %q", path, policy)
		}
	}
	for path, contentType := range map[string]string{"/assets/page.js": "text/javascript", "/assets/page.css": "text/css"} {
		if a := s.do("GET", path, nil); a.StatusCode != http.StatusOK || !strings.HasPrefix(a.Header.Get("Content-Type"), contentType) || len(a.body) == 0 {
			t.Errorf("%s: %d %s", path, a.StatusCode, a.Header.Get("Content-Type"))
		}
	}
	for _, path := range []string{"/assets/nothing", "/assets/..%2fpage.html", "/assets/%00"} {
		s.do("GET", path, nil).problem(t, http.StatusNotFound)
	}
	s.do("GET", "/executions/x", nil).problem(t, http.StatusUnprocessableEntity)
	s.do("GET", "/executions/019366e0-7c00-7000-8000-0000000000ab", nil).problem(t, http.StatusNotFound)
}
