package ovmf_test

import (
	"crypto/sha256"
	"fmt"
	"log"

	"github.com/evtpm/evtpm/measure"
	"github.com/evtpm/evtpm/ovmf"
	"github.com/evtpm/evtpm/ovmf/ovmftest"
)

// The launch digest of a firmware with two vCPUs of a CPU model, and of a direct
// boot that is measured.
func Example() {
	firmware := ovmftest.Build(ovmftest.AmdSev()) // os.ReadFile("OVMF.amdsev.fd")
	img, err := ovmf.Parse(firmware)
	if err != nil {
		log.Fatal(err)
	}
	signature, err := measure.CPUSignature("EPYC-Milan")
	if err != nil {
		log.Fatal(err)
	}
	cmdline, err := measure.HashCmdline("console=ttyS0")
	if err != nil {
		log.Fatal(err)
	}
	kernel := sha256.Sum256([]byte("kernel"))
	for _, hashes := range []*measure.KernelHashes{nil, {Kernel: kernel, Initrd: measure.NoInitrd, Cmdline: cmdline}} {
		seq, err := img.Sequence(ovmf.LaunchOptions{VCPUs: 2, CPUSignature: signature, Hashes: hashes})
		if err != nil {
			log.Fatal(err)
		}
		digest, err := seq.LaunchDigest()
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(digest)
	}
	// Output:
	// f10725fa4ae5184acd6e317c55a607c8eb9c1afb6af868880398cdd314408cd6388e3809ff996b9b9827c6d71e968058
	// f22a893014029fa31e8ac381780778227ba6cb52663849bc89deda047ddec9e039762c7c199ac17d76a6ed6ebf46c735
}
