package amqpx

import "slices"

// openTags tells which requests of one channel may be acknowledged together: AMQP
// acknowledges "this one and all before it" in one frame, which is wrong while one
// before it is still open. It holds at most a prefetch of tags. Its zero value is
// that of a new channel, whose delivery tags begin at 1.
type openTags struct {
	highest uint64   // the highest tag that was settled
	gaps    []uint64 // the tags below it that were not, in order
}

// settle notes tags, in order, as settled. All of together may be acknowledged by
// its last one, those of single only one by one.
func (o *openTags) settle(tags []uint64) (together, single []uint64) {
	for _, tag := range tags {
		if tag <= o.highest {
			if i, ok := slices.BinarySearch(o.gaps, tag); ok {
				o.gaps = slices.Delete(o.gaps, i, i+1)
			}
			continue
		}
		for gap := o.highest + 1; gap < tag; gap++ {
			o.gaps = append(o.gaps, gap)
		}
		o.highest = tag
	}
	n := len(tags)
	if len(o.gaps) > 0 {
		n, _ = slices.BinarySearch(tags, o.gaps[0])
	}
	return tags[:n], tags[n:]
}
