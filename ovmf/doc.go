// Package ovmf reads OVMF firmware images as SEV launches use them: the table
// of GUIDs at the end, the SEV metadata that it leads to, and the place of the
// kernel hashes; and makes the launch sequence of an image.
//
// The layouts are edk2's (OvmfPkg/ResetVector/Ia16/ResetVectorVtf0.asm,
// OvmfPkg/ResetVector/X64/OvmfSevMetadata.asm), the rules QEMU's
// (target/i386/sev.c, hw/i386/pc_sysfw_ovmf.c). An image that QEMU would not
// start is refused with the words QEMU would have used, never measured.
package ovmf
