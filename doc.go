// Package kith is the root of the module: it holds no code, only the test that
// keeps the tree to docs/architecture.md. The program is cmd/kith.
package kith
