package admin

import (
	"maps"
	"slices"
)

// Routes returns the patterns of all handlers.
func Routes(o Options) []string { return slices.Sorted(maps.Keys((&api{o}).routes())) }
