package codec

import (
	"encoding/base64"
	"encoding/json"
	"mime"

	"verbatim.dev/events"
)

// structured takes a CloudEvents JSON document apart (cloudevents/spec, formats/json-format.md): every
// attribute is a member, the payload is data (JSON) or data_base64 (bytes).
func structured(document []byte) (a attributes, media string, value []byte, err error) {
	var members map[string]json.RawMessage
	if err := json.Unmarshal(document, &members); err != nil {
		return attributes{}, "", nil, malformed("structured mode: %w", err)
	}
	given := ""
	for name, raw := range members {
		if name == "data" || name == "data_base64" || string(raw) == "null" {
			continue
		}
		var v string
		if json.Unmarshal(raw, &v) != nil {
			// Integers and booleans are written without quotes; anything else is no attribute value.
			var scalar any
			if json.Unmarshal(raw, &scalar) != nil {
				return attributes{}, "", nil, malformed("structured mode: attribute %q cannot be read", cut(name))
			}
			switch scalar.(type) {
			case float64, bool:
				v = string(raw)
			default:
				return attributes{}, "", nil, malformed("structured mode: attribute %q is no string, number or boolean", cut(name))
			}
		}
		if a.set(name, v); name == "datacontenttype" {
			given = v
		}
	}
	// The document's default is JSON.
	media = events.ContentTypeJSON
	if given != "" {
		if media, _, err = mime.ParseMediaType(given); err != nil {
			return attributes{}, "", nil, malformed("structured mode: datacontenttype %q: %w", cut(given), err)
		}
	}
	data, hasData := members["data"]
	encoded, hasBytes := members["data_base64"]
	switch {
	case hasData && hasBytes:
		return attributes{}, "", nil, malformed("structured mode: both data and data_base64 are there, only one may be")
	case hasBytes:
		var text string
		if err := json.Unmarshal(encoded, &text); err != nil {
			return attributes{}, "", nil, malformed("structured mode: data_base64 is no string")
		}
		if value, err = base64.StdEncoding.DecodeString(text); err != nil {
			return attributes{}, "", nil, malformed("structured mode: data_base64: %w", err)
		}
	case hasData:
		value = data
	}
	return a, media, value, nil
}
