package config

import (
	"regexp"
	"strconv"
	"strings"
	"unicode"
)

// tiny is the maximum length in bytes of a value that is always quoted.
const tiny = 3

// theValue replaces a value that a fault does not quote.
const theValue = "the value"

// almostNumber matches a number followed by at most two letters, in spaces and quotes.
var almostNumber = regexp.MustCompile(`^[\s"']{0,4}[-+]?[0-9][0-9.,_]{0,30}[A-Za-zµ]{0,2}[\s"']{0,4}$`)

// QuoteNumber quotes a value for a fault of a number or a duration. A value that does not
// resemble a number may be a secret in the wrong variable; QuoteNumber then returns "the
// value".
func QuoteNumber(value string) string {
	if len(value) <= tiny || almostNumber.MatchString(value) {
		return strconv.Quote(value)
	}
	return theValue
}

// QuoteWord quotes a value for a fault of a setting with a fixed set of words. A value that is
// not a misspelling of an allowed word may be a secret; QuoteWord then returns "the value".
func QuoteWord(value string, words ...string) string {
	const most = 40
	if len(value) > most {
		return theValue
	}
	if len(value) <= tiny {
		return strconv.Quote(value)
	}
	plain := plainWord(value)
	for _, word := range words {
		if distance(plain, plainWord(word)) <= 2 {
			return strconv.Quote(value)
		}
	}
	return theValue
}

// plainWord returns the letters and digits of a word, in lower case.
func plainWord(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsLetter(r) || unicode.IsDigit(r) {
			return unicode.ToLower(r)
		}
		return -1
	}, s)
}

// distance returns the Levenshtein distance of a and b: the number of letters to insert,
// delete or replace.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			replaced := diagonal
			if a[i] != b[j] {
				replaced++
			}
			diagonal = row[j+1]
			row[j+1] = min(replaced, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
