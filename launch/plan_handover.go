package launch

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"

	"github.com/evtpm/evtpm/measure"
	"github.com/evtpm/evtpm/strictjson"
)

// handoverSchema names the version of a handed-over plan. Both sides are the same
// program; the version catches one that was replaced in between.
const handoverSchema = "evtpm.plan/v1"

// MaxHandoverBytes bounds a handed-over plan: golden values and a spec.
const MaxHandoverBytes = measure.MaxGoldenSize + 1<<20

// handover is what travels to the process that starts the VM, beside the files.
type handover struct {
	Schema  string          `json:"schema"`
	Spec    *Spec           `json:"spec"`
	Inputs  []handoverInput `json:"inputs"`
	IDBlock []byte          `json:"id_block,omitempty"`
	IDAuth  []byte          `json:"id_auth,omitempty"`
	Golden  *measure.Golden `json:"golden"`
}

type handoverInput struct {
	Name   string           `json:"name"`
	Path   string           `json:"path"`
	Size   int64            `json:"size"`
	SHA256 measure.HexBytes `json:"sha256"`
}

// Handover returns the plan in JSON and the files that go with it, in the order
// in which [TakePlan] wants them: for exec.Cmd's ExtraFiles. The files stay the
// plan's.
func (p *Plan) Handover() ([]byte, []*os.File, error) {
	h := handover{Schema: handoverSchema, Spec: p.Spec, IDBlock: p.IDBlock, IDAuth: p.IDAuth, Golden: p.Golden}
	var files []*os.File
	for _, in := range p.Inputs() {
		if in.File == nil {
			return nil, nil, fmt.Errorf("plan: %s: %w", in.Name, os.ErrClosed)
		}
		h.Inputs = append(h.Inputs, handoverInput{Name: in.Name, Path: in.Path, Size: in.Size, SHA256: in.SHA256[:]})
		files = append(files, in.File)
	}
	data, err := json.Marshal(h)
	if err != nil {
		return nil, nil, fmt.Errorf("plan: %w", err)
	}
	return data, files, nil
}

// TakePlan makes the plan that was handed over again. It derives everything anew
// from the files and refuses files that are not sealed, or that do not lead to
// the launch digest in the golden values. The files are the plan's from then on,
// and closed when TakePlan fails.
func TakePlan(data []byte, files []*os.File) (_ *Plan, err error) {
	p := new(Plan)
	defer func() {
		if err == nil {
			return
		}
		err = fmt.Errorf("plan: %w", err)
		for _, f := range files {
			f.Close()
		}
	}()
	h := new(handover)
	if err := strictjson.Unmarshal(data, h, MaxHandoverBytes, "handover"); err != nil {
		return nil, err
	}
	if h.Schema != handoverSchema {
		return nil, fmt.Errorf("schema: found %q, expected %q", clip(h.Schema), handoverSchema)
	}
	if h.Spec == nil || h.Golden == nil {
		return nil, fmt.Errorf("found no spec or no golden values")
	}
	if err := h.Spec.Validate(); err != nil {
		return nil, err
	}
	p.Name, p.Spec, p.Golden, p.IDBlock, p.IDAuth = h.Spec.Name, h.Spec, h.Golden, h.IDBlock, h.IDAuth
	if err := p.takeInputs(h.Inputs, files); err != nil {
		return nil, err
	}
	digest, err := p.derive()
	if err != nil {
		return nil, err
	}
	if !slices.Contains(p.Golden.LaunchDigests, digest) {
		return nil, fmt.Errorf("launch digest of the files is %s, expected %s", digest, p.Golden.LaunchDigests)
	}
	p.AuthorKey = p.Golden.IDBlock != nil && p.Golden.IDBlock.AuthorKeyDigest != nil
	return p, p.Golden.Validate()
}

// takeInputs puts the files into the plan's slots.
func (p *Plan) takeInputs(inputs []handoverInput, files []*os.File) error {
	if len(inputs) != len(files) {
		return fmt.Errorf("found %d files, expected %d", len(files), len(inputs))
	}
	slots := p.slots()
	for i, h := range inputs {
		j := slices.IndexFunc(slots, func(s inputSlot) bool { return s.name == h.Name && s.path != "" && *s.input == nil })
		if j < 0 || len(h.SHA256) != 32 {
			return fmt.Errorf("inputs[%d]: found %q, expected an input of the spec, once, with its hash", i, clip(h.Name))
		}
		if err := checkSealed(files[i]); err != nil {
			return fmt.Errorf("%s: %w", h.Name, err)
		}
		info, err := files[i].Stat()
		if err != nil {
			return err
		}
		if info.Size() != h.Size {
			return fmt.Errorf("%s: found %d bytes, expected %d", h.Name, info.Size(), h.Size)
		}
		*slots[j].input = &Input{Name: h.Name, Path: h.Path, Size: h.Size, SHA256: [32]byte(h.SHA256), File: files[i]}
	}
	for _, s := range slots {
		if (s.path != "") != (*s.input != nil) {
			return fmt.Errorf("%s: found no file, expected one", s.name)
		}
	}
	return nil
}
