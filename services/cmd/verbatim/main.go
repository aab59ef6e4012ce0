// Command verbatim is every service and every user command of Verbatim.
package main

import (
	"os"

	"verbatim.dev/services/cli"
)

func main() {
	os.Exit(cli.Main(os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}
