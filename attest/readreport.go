package attest

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
)

// MaxReportFile bounds a file that holds a report: in hexadecimal, with a
// certificate table behind it.
const MaxReportFile = 2 * (ReportSize + maxCertTable)

// SplitReport takes apart what tools save as a report: the 1184 bytes, with or
// without a certificate table behind them, or Azure's HCL report around them; or
// the same in hexadecimal, with or without 0x before it, or base64 (white space
// is passed over).
func SplitReport(data []byte) (report, certTable []byte, err error) {
	if len(data) > MaxReportFile {
		return nil, nil, fmt.Errorf("report: found %d bytes, expected at most %d", len(data), MaxReportFile)
	}
	if isText(data) {
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
	if bytes.HasPrefix(text, []byte("{")) {
		return nil, errors.New("report: found JSON, expected a bare report: evidence has commands of its own")
	}
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
