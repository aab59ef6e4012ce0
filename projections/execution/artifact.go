package execution

import (
	"encoding/hex"

	executionv1 "verbatim.dev/events/proto/verbatim/execution/v1"
)

// maxURIBytes bounds the URI of a file.
const maxURIBytes = 2048

// trimRecorded keeps what the row shows: one file per stream.
func trimRecorded(d *executionv1.OutputRecorded) *executionv1.OutputRecorded {
	t := &executionv1.OutputRecorded{}
	var have [streamCount]bool
	for _, f := range d.GetArtifacts() {
		i := streamIndex(f.GetStream())
		if i < 0 || have[i] || len(f.GetUri()) > maxURIBytes || len(f.GetSha256()) > 32 {
			continue
		}
		have[i] = true
		t.Artifacts = append(t.Artifacts, &executionv1.Artifact{
			Stream: f.GetStream(), Uri: f.GetUri(), SizeBytes: f.GetSizeBytes(), Sha256: f.GetSha256(),
			DigestCheck: f.GetDigestCheck(),
		})
	}
	return t
}

// files fills in where the output is kept.
func (a *attempt) files(r *Row) {
	for _, f := range a.recorded.data.GetArtifacts() {
		uri, size, sum, match := &r.StdoutLog, &r.StdoutLogBytes, &r.StdoutLogSHA256, &r.StdoutLogMatch
		if streamIndex(f.GetStream()) == stderr {
			uri, size, sum, match = &r.StderrLog, &r.StderrLogBytes, &r.StderrLogSHA256, &r.StderrLogMatch
		}
		*uri, *size, *sum = text(f.GetUri()), ptr(f.GetSizeBytes()), text(hex.EncodeToString(f.GetSha256()))
		switch f.GetDigestCheck() {
		case executionv1.DigestCheck_DIGEST_CHECK_MATCH:
			*match = ptr(true)
		case executionv1.DigestCheck_DIGEST_CHECK_MISMATCH:
			*match = ptr(false)
		}
	}
}
