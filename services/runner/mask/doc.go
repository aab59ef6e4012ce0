// Package mask hides secret values in a stream of bytes. Every byte of a found value becomes '*': offsets and
// lengths stay what they were, and the masked ranges are reported, so nothing changes silently.
//
// A value is found wherever it stands: split over any number of writes, next to or overlapping another, as it is,
// line by line when it has several (a tool may indent them), as base64 (in each of its three alignments, in the standard and the URL
// alphabet), percent-encoded, or as the content of a JSON string. What is found is found in one pass (Aho and Corasick, 1975).
//
// Bytes that may be the beginning of a value are held back until what follows decides, or until the stream ends; so at
// most the length of the longest form less one is held, and a value is never published in parts because a timer fired.
//
// Behind a hole in a stream, what may be the end of a value that began in the hole is hidden, too, be it one byte.
//
// Values shorter than MinBytes are not masked, because masking "a" or "42" would hide the output and not the secret; New
// names them, and whoever uses them must say so.
package mask
