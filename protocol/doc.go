// Package protocol holds what both ends of a kith conversation must share:
// version numbers, limits and key-derivation labels, each with its reason.
//
// The packages below it are pure: bytes and a time go in, bytes and a next
// state come out. They open no sockets, start no goroutines, read no clock and
// write no log, so an implementation can be checked against docs/spec and its
// vectors without a network.
package protocol
