//go:build !linux

package fileio

var exchange = func(a, b string) error { return errNoExchange }
