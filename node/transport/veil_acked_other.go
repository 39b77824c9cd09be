//go:build !linux

package transport

import (
	"net"
	"time"
)

// acknowledged knows nothing where the system does not tell: then what is on its way
// on a slow line is taken for lost sooner.
func acknowledged(net.Conn) (bytes uint64, at time.Time) { return 0, at }
