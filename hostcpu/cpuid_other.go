//go:build !amd64

package hostcpu

// cpuid answers as no processor does.
func cpuid(uint32) (eax, ebx, ecx, edx uint32) { return 0, 0, 0, 0 }
