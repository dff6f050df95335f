// Package undo reads and writes the undo record of a merge (spec/UNDO.md). For every element that a
// merge changed, the record holds the distance between the exact subtraction and the value before
// the merge, and digests that prove the restored values. Package undo handles the bytes of a
// record; package merge computes the subtraction.
//
// Use a Writer during a merge. To undo one, Open the record, and for each block call CheckMerged
// with the merged values and Restore with the predictions.
//
// A record is a .lora container with the method "other:undo". Its tensors are streams, one per
// changed tensor of the base. Its attachments are the headers of the base's files and the
// description of the merge.
package undo
