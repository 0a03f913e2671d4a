// Package nearest finds what a misspelt name was meant to be, among those that are
// known: commands and flags, fields of files, CPU models.
package nearest

import "strings"

// enough is how much of a name is looked at: text from outside may be of any
// length, and known names are shorter.
const enough = 64

// Name returns the known name that is so near to name that it was probably meant,
// or "" when none is. Differences of case count nothing. A beginning is near.
func Name(name string, known []string) string {
	best, distance := "", min(len(name), enough)/3+2
	for _, k := range known {
		if d := Distance(name, k); d < distance {
			best, distance = k, d
		}
	}
	if best != "" || len(name) < 3 {
		return best
	}
	for _, k := range known {
		if len(name) < len(k) && strings.EqualFold(k[:len(name)], name) {
			return k
		}
	}
	return ""
}

// Distance is the Levenshtein distance of two names; differences of case count
// nothing.
func Distance(a, b string) int {
	a, b = strings.ToLower(a[:min(len(a), enough)]), strings.ToLower(b[:min(len(b), enough)])
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
