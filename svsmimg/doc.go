// Package svsmimg reads, writes, measures, checks, builds and signs SVSM
// images: IGVM files (Independent Guest Virtual Machine, versions 1 and 2 of
// https://docs.rs/igvm_defs), in which COCONUT-SVSM ships together with its
// vTPM and the guest's firmware, and the older pair of an svsm.bin and an OVMF.
//
// [Parse] is strict: a file that two loaders could read in two ways is refused.
// [File.Sequence] gives the launch sequence, which depends on the host as much as
// on the file: see [Profile]. Nothing in this package runs an image.
package svsmimg
