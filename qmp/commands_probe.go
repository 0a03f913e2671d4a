package qmp

import "context"

// SEV is the answer to query-sev.
type SEV struct {
	Enabled bool `json:"enabled"`
	// State is "uninit", "launch-update", "launch-secret", "running" and others.
	State string `json:"state"`
	// Type is "sev" or "sev-snp".
	Type string `json:"sev-type"`
	// SNPPolicy is the guest policy given to SNP_LAUNCH_START.
	SNPPolicy uint64 `json:"snp-policy"`
	// APIMajor, APIMinor and BuildID are the version of the AMD-SP's firmware.
	APIMajor int `json:"api-major"`
	APIMinor int `json:"api-minor"`
	BuildID  int `json:"build-id"`
}

// QuerySEV asks what QEMU knows of the launch.
func (c Commands) QuerySEV(ctx context.Context) (SEV, error) {
	return query[SEV](ctx, c, "query-sev", nil)
}

// QueryTPMModels lists the TPM devices that this QEMU was built with: "tpm-crb",
// "tpm-tis".
func (c Commands) QueryTPMModels(ctx context.Context) ([]string, error) {
	return query[[]string](ctx, c, "query-tpm-models", nil)
}

// QueryTPMTypes lists the TPM back ends that this QEMU was built with:
// "passthrough", "emulator".
func (c Commands) QueryTPMTypes(ctx context.Context) ([]string, error) {
	return query[[]string](ctx, c, "query-tpm-types", nil)
}
