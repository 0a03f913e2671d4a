//go:build !linux

package main

import "errors"

func peakMemory([]string) (int64, error) {
	return 0, errors.New("peak memory is measured on Linux alone")
}
