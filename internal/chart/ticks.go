package chart

import (
	"math"
	"strconv"
)

// Tick is a labelled position on an axis.
type Tick struct {
	At    float64
	Label string // empty: only a grid line
}

// linearTicks returns about n round values from low to high.
func linearTicks(low, high float64, n int) []Tick {
	step := roundStep((high - low) / float64(max(n, 1)))
	var ticks []Tick
	for k := math.Ceil(low/step - 1e-9); k*step <= high+step*1e-9; k++ {
		ticks = append(ticks, Tick{At: k * step, Label: Short(k * step)})
	}
	return ticks
}

// roundStep returns 1, 2 or 5 times a power of ten, at least the given step.
func roundStep(step float64) float64 {
	if !(step > 0) || math.IsInf(step, 0) {
		return 1
	}
	power := math.Pow(10, math.Floor(math.Log10(step)))
	for _, round := range []float64{1, 2, 5} {
		if step <= round*power*(1+1e-9) {
			return round * power
		}
	}
	return 10 * power
}

// logTicks returns the powers of ten between the logarithms low and high, and values between
// the powers if there is space.
func logTicks(low, high float64, n int) []Tick {
	parts := []float64{1}
	switch decades := high - low; {
	case 3*decades <= float64(n)+1:
		parts = []float64{1, 2, 5}
	case decades > float64(n):
		return everyOther(low, high, int(math.Ceil(decades/float64(max(n, 1)))))
	}
	var ticks []Tick
	for exponent := math.Floor(low); exponent <= high; exponent++ {
		for _, part := range parts {
			at := exponent + math.Log10(part)
			if at >= low-1e-9 && at <= high+1e-9 {
				ticks = append(ticks, Tick{At: at, Label: Short(part * math.Pow(10, exponent))})
			}
		}
	}
	if len(ticks) < 2 { // the range is too small for powers of ten
		ticks = nil
		for _, t := range linearTicks(math.Pow(10, low), math.Pow(10, high), n) {
			ticks = append(ticks, Tick{At: math.Log10(t.At), Label: t.Label})
		}
	}
	return ticks
}

// everyOther returns each stride-th power of ten.
func everyOther(low, high float64, stride int) []Tick {
	var ticks []Tick
	for exponent := math.Ceil(low - 1e-9); exponent <= high+1e-9; exponent += float64(stride) {
		ticks = append(ticks, Tick{At: exponent, Label: Short(math.Pow(10, exponent))})
	}
	return ticks
}

// Short formats a number with at most three digits, and a letter for thousands, millions and
// billions.
func Short(v float64) string {
	if !finite(v) {
		return "0"
	}
	for _, unit := range []struct {
		size   float64
		letter string
	}{{1e9, "G"}, {1e6, "M"}, {1e4, "k"}} {
		if math.Abs(v) >= unit.size*(1-1e-9) {
			size := unit.size
			if unit.letter == "k" { // 1000 and 2500 are as short as 1k and 2.5k, and plainer
				size = 1e3
			}
			return digits(v/size) + unit.letter
		}
	}
	return digits(v)
}

// digits formats a number with three digits, or four before the point, without an exponent.
func digits(v float64) string {
	if v == 0 {
		return "0"
	}
	places := max(0, 2-int(math.Floor(math.Log10(math.Abs(v))+1e-9)))
	scale := math.Pow10(min(places, 9))
	return strconv.FormatFloat(math.Round(v*scale)/scale, 'f', -1, 64)
}
