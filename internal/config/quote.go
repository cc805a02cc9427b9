package config

import (
	"regexp"
	"strconv"
	"strings"
	"unicode"
)

// tiny is the most bytes of a value that is quoted whatever it is.
const tiny = 3

// theValue stands for a value that a fault does not quote.
const theValue = "the value"

// almostNumber matches a number with at most two letters after it, in spaces and quotes.
var almostNumber = regexp.MustCompile(`^[\s"']{0,4}[-+]?[0-9][0-9.,_]{0,30}[A-Za-zµ]{0,2}[\s"']{0,4}$`)

// QuoteNumber quotes a value for a fault of a setting that takes a number or a duration.
// Anything that is far from one may be a secret that got into the wrong variable: it is
// "the value".
func QuoteNumber(value string) string {
	if len(value) <= tiny || almostNumber.MatchString(value) {
		return strconv.Quote(value)
	}
	return theValue
}

// QuoteWord quotes a value for a fault of a setting that takes one of a few words. What is
// no misspelling of one of them may be a secret: it is "the value".
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

// plainWord keeps the letters and digits of a word, in lower case.
func plainWord(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsLetter(r) || unicode.IsDigit(r) {
			return unicode.ToLower(r)
		}
		return -1
	}, s)
}

// distance is how many letters have to be put in, taken out or replaced to make b of a
// (Levenshtein).
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
