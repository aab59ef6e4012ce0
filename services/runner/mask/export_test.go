package mask

// Forms are those of a value.
var Forms = forms
