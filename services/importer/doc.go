// Package importer makes facts of what a worker without Verbatim left behind: a folder with stdout.log, stderr.log and a result
// in JSON. The bytes of the files become OutputChunks, whatever the result says; the result says how the process ended, as far as
// it can be believed.
//
//	the result                                          the fact
//	an exit code of 1 to 255                            ProcessExited with it
//	an exit code of 0, and nothing says that it failed  ProcessExited with 0
//	a word for success, and no exit code                ProcessExited with 0
//	a signal; or a code of -2 to -64 (as Python has it) ProcessExited with the signal
//	anything else, or no result, or a broken one        WaitFailed, with the result's error as its cause
//
// A code of 0 beside an error is not believed, since it is what a program writes that never set it; neither is -1. A timeout or a
// cancel that the result tells of is a TerminationStarted besides.
//
// The execution's id is made from the folder's host, path and content, so that importing a folder twice is importing it once.
package importer
