// Package measure computes what AMD SEV hardware measures when a VM is
// launched, and the golden values that a tenant compares evidence with.
//
// The central type is the [Sequence]: the ordered list of pages that the
// AMD-SP is given, and the VMSAs measured at the end. Packages ovmf and
// svsmimg make one from an image; [Sequence.LaunchDigest] folds it as SNP does
// (SEV Secure Nested Paging Firmware ABI Specification, AMD publication 56860,
// SNP_LAUNCH_UPDATE).
//
// The package reads bytes and computes; it opens no file and knows no device.
package measure
