// Package attest judges evidence of confidential VMs with ephemeral vTPMs: AMD
// SEV-SNP attestation reports and their certificates, the SVSM's binding of a
// vTPM's EK to a report, the vTPM's quote, and the event log behind its PCRs.
//
// [Challenge] asks a running guest for evidence; [Verify] judges evidence against
// golden values and a [Policy]; [VerifyReport] judges a bare report. What comes of
// it is a [Verdict]: every check of [Checks], each passed, failed or not
// applicable. A check that nobody made has failed, so that a verdict is never
// trusted for want of one. Nothing is trusted because a guest, a host or a network
// said so; roots are AMD's, byte for byte, or a simulated platform's that the
// caller names, never both.
//
// The library reads no files but a [FileRegistry]'s, opens no connections but
// through a [Getter], and takes the time from [Options].
//
// Sources: SEV Secure Nested Paging Firmware ABI (AMD 56860); VCEK Certificate and
// KDS Interface (57230); SEV-ES Guest-Hypervisor Communication Block (56421);
// Secure VM Service Module for SEV-SNP Guests (58019); TPM 2.0 Library, parts 1
// and 2; TCG EK Credential Profile; TCG PC Client Platform Firmware Profile; RFC
// 5280.
package attest
