// Package apiv1 is the generated Go form of kith.proto, the local API of a
// kith daemon, version 1. Package api serves it and dials it.
package apiv1
