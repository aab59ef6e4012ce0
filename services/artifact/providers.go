package artifact

// The stores that every build knows. Google's (gs://) adds 30 MB to the program and is in builds with "-tags gcs"; its
// S3-compatible interface is reached without, by s3://.
import (
	_ "gocloud.dev/blob/azureblob"
	_ "gocloud.dev/blob/s3blob"
)
