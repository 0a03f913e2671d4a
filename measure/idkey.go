package measure

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
)

// ParsePrivateKeyPEM reads an ECDSA P-384 private key in PEM: SEC 1 ("openssl
// ecparam -name secp384r1 -genkey") or PKCS #8 ("openssl genpkey"). Encrypted
// keys are not read.
func ParsePrivateKeyPEM(data []byte) (*ecdsa.PrivateKey, error) {
	var found []string
	for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
		var key any
		var err error
		switch block.Type {
		case "EC PRIVATE KEY":
			if block.Headers["DEK-Info"] != "" {
				return nil, errors.New("private key: found an encrypted one; decrypt it first (openssl ec), or sign in two steps")
			}
			key, err = x509.ParseECPrivateKey(block.Bytes)
		case "PRIVATE KEY":
			key, err = x509.ParsePKCS8PrivateKey(block.Bytes)
		case "ENCRYPTED PRIVATE KEY":
			return nil, errors.New("private key: found an encrypted one; decrypt it first (openssl pkey), or sign in two steps")
		default: // "EC PARAMETERS" stands before the key in OpenSSL's output
			found = append(found, block.Type)
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("private key: %w", err)
		}
		ec, ok := key.(*ecdsa.PrivateKey)
		if !ok {
			return nil, fmt.Errorf("private key: found a %T, expected ECDSA P-384", key)
		}
		return ec, checkCurve("private key", ec.Curve)
	}
	return nil, fmt.Errorf("private key: found PEM blocks %q, expected EC PRIVATE KEY or PRIVATE KEY", found)
}

// ParsePublicKeyPEM reads an ECDSA P-384 public key in PEM: SubjectPublicKeyInfo,
// a certificate, or a private key's public half.
func ParsePublicKeyPEM(data []byte) (*ecdsa.PublicKey, error) {
	var found []string
	for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
		var key any
		var err error
		switch block.Type {
		case "PUBLIC KEY":
			key, err = x509.ParsePKIXPublicKey(block.Bytes)
		case "CERTIFICATE":
			var cert *x509.Certificate
			if cert, err = x509.ParseCertificate(block.Bytes); err == nil {
				key = cert.PublicKey
			}
		case "EC PRIVATE KEY", "PRIVATE KEY":
			private, err := ParsePrivateKeyPEM(data)
			if err != nil {
				return nil, err
			}
			return &private.PublicKey, nil
		default:
			found = append(found, block.Type)
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("public key: %w", err)
		}
		ec, ok := key.(*ecdsa.PublicKey)
		if !ok {
			return nil, fmt.Errorf("public key: found a %T, expected ECDSA P-384", key)
		}
		return ec, checkCurve("public key", ec.Curve)
	}
	return nil, fmt.Errorf("public key: found PEM blocks %q, expected PUBLIC KEY or CERTIFICATE", found)
}

func checkCurve(what string, c elliptic.Curve) error {
	if c != elliptic.P384() {
		return fmt.Errorf("%s: found curve %s, expected P-384", what, c.Params().Name)
	}
	return nil
}
