// Package undo holds the undo record of a merge (spec/UNDO.md): for every element that a merge
// changed, how far the exact subtraction comes out from the value that was there before, and the
// digests that prove the way back. It knows the bytes of a record; package merge knows what to
// subtract.
//
// A record is a .lora container of the method "other:undo". Its tensors are streams, one per
// changed tensor of the base, its attachments the header bytes of the base's files and the
// description of the merge.
package undo
