package checkpoint

// WithStorage adds a way of storing tensors until restore is called.
func WithStorage(s Storage) (restore func()) {
	before := storages
	storages = append(storages[:len(storages):len(storages)], s)
	return func() { storages = before }
}
