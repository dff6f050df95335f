package convert

// peftAlone is a file with PEFT's keys that was separated from its configuration.
var peftAlone = &pairDialect{
	readOnly: readOnly{"peft"}, needsScale: true, owns: func(k *pairKey) bool { return k.isPEFTs },
}
