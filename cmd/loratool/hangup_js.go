package main

import "os"

// hangup is nil: JavaScript has no terminals that close.
var hangup os.Signal
