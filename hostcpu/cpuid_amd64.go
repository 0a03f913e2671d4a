package hostcpu

// cpuid executes CPUID with ECX zero.
func cpuid(leaf uint32) (eax, ebx, ecx, edx uint32)
