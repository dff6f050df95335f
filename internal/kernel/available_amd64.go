package kernel

func available() []*Kernel { return nil }
