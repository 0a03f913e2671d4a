package attest

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
)

// MaxReportFile bounds a file that holds a report: in hexadecimal, with a
// certificate table behind it.
const MaxReportFile = 2 * (ReportSize + maxCertTable)

// Offsets in a MSG_REPORT_RSP (SNP ABI 56860), which the sev-guest device gives.
const (
	offRspStatus = 0
	offRspSize   = 4
	rspHeader    = 32
)

// SplitReport takes apart what tools save as a report: the 1184 bytes, with or
// without a certificate table behind them, the AMD-SP's whole answer or Azure's
// HCL report around them; or the same in hexadecimal, with or without 0x before
// it, or base64 (white space is passed over); or JSON of Trustee, of the sev crate
// or of configfs-tsm.
func SplitReport(data []byte) (report, certTable []byte, err error) {
	if len(data) > MaxReportFile {
		return nil, nil, fmt.Errorf("report: found %d bytes, expected at most %d", len(data), MaxReportFile)
	}
	if isText(data) {
		if text := bytes.TrimSpace(data); bytes.HasPrefix(text, []byte("{")) {
			return reportFromJSON(text)
		}
		if data, err = decodeText(data); err != nil {
			return nil, nil, err
		}
	}
	if bytes.HasPrefix(data, []byte(hclMagic)) {
		hcl, err := ParseHCL(data)
		if err != nil {
			return nil, nil, fmt.Errorf("report: %w", err)
		}
		return hcl.Report, nil, nil
	}
	if isReportResponse(data) {
		return data[rspHeader : rspHeader+ReportSize], nil, nil
	}
	if len(data) < ReportSize {
		return nil, nil, fmt.Errorf("%w: found %d bytes, expected %d", ErrReportLength, len(data), ReportSize)
	}
	report, certTable = data[:ReportSize], data[ReportSize:]
	if len(certTable) == 0 {
		return report, nil, nil
	}
	if _, err := ParseCertTable(certTable); err != nil {
		return nil, nil, fmt.Errorf("report: %d bytes behind the report are no certificate table: %w", len(certTable), err)
	}
	return report, certTable, nil
}

// isReportResponse tells a MSG_REPORT_RSP, whose status is 0, from a report, whose
// version is not.
func isReportResponse(data []byte) bool {
	le := binary.LittleEndian
	return len(data) >= rspHeader+ReportSize && le.Uint32(data[offRspStatus:]) == 0 && le.Uint32(data[offRspSize:]) == ReportSize &&
		allZero(data[offRspSize+4:rspHeader]) && allZero(data[rspHeader+ReportSize:])
}

// isText tells text from a report's bytes, of which many are zero.
func isText(data []byte) bool {
	for _, c := range data {
		if c < 0x20 && c != '\n' && c != '\r' && c != '\t' || c > 0x7E {
			return false
		}
	}
	return true
}

// decodeText reads hexadecimal, or base64 of either alphabet with or without
// padding.
func decodeText(data []byte) ([]byte, error) {
	text := bytes.Join(bytes.Fields(data), nil)
	text = bytes.TrimPrefix(text, []byte("0x"))
	if out, err := hex.DecodeString(string(text)); err == nil {
		return out, nil
	}
	text = bytes.TrimRight(text, "=")
	for _, enc := range []*base64.Encoding{base64.RawStdEncoding, base64.RawURLEncoding} {
		if out, err := enc.Strict().DecodeString(string(text)); err == nil {
			return out, nil
		}
	}
	return nil, errors.New("report: neither hexadecimal nor base64")
}
