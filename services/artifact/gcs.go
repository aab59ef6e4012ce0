//go:build gcs

package artifact

import _ "gocloud.dev/blob/gcsblob"

func init() { schemes["gs"] = true }
