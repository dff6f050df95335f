package fileio

// WithoutExchange runs f as on a system that cannot swap names.
func WithoutExchange(f func()) {
	old := exchange
	exchange = func(string, string) error { return errNoExchange }
	defer func() { exchange = old }()
	f()
}
