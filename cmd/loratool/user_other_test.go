//go:build !unix

package main

func becomeUser(f func()) func() { return f }
