// Package snpsim stands in for the two parts of a confidential VM that need the
// silicon: the AMD-SP, which measures a launch and signs reports, and the SVSM
// at VMPL0 with its ephemeral vTPM. Everything else of the simulated platform is
// real: QEMU, OVMF, kernel, and swtpm's TPM.
//
// The order of a simulated launch:
//
//	root, _ := snpsim.OpenRoot(dir, "Genoa")  // ARK -> ASK, made once
//	chip, _ := root.Chip("")                  // VCEK of this machine
//	sp, _ := snpsim.NewSP(chip, snpsim.SPOptions{})
//	svsm, _ := snpsim.StartSVSM(ctx, ...)     // fresh vTPM; QEMU's -tpmdev connects to it
//	// QEMU is started with -S
//	seq, _ := snpsim.ReadSequence(ctx, mon, ...)  // what QEMU really holds
//	sp.Launch(seq, params)                    // launch digest, REPORT_ID
//	svsm.Provision(ctx, sp)                   // EK bound to the report
//	go svsm.Serve(ctx, port)                  // SVSM attestation protocol
//	// QEMU: cont
//
// The keys lie in a directory, in the clear, and certify nothing: every
// certificate says SIMULATED, and verifiers take the root only when they are
// told to.
//
// Report layout and launch rules: SEV Secure Nested Paging Firmware ABI
// Specification, AMD 56860. SVSM protocols: Secure VM Service Module, AMD 58019.
// vTPM provisioning: Remote Attestation of Confidential VMs Using Ephemeral
// vTPMs, ACSAC 2023, DOI 10.1145/3627106.3627112.
package snpsim
