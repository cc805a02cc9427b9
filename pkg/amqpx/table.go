package amqpx

import "encoding/binary"

// Bounds of amqp091-go's reader, below which a table is certain to be read.
const (
	readableDepth   = 32
	readableEntries = 8192
)

// readableTable reports whether amqp091-go can read a field table (AMQP 0-9-1
// section 4.2.5.5, with RabbitMQ's types,
// https://www.rabbitmq.com/docs/amqp-0-9-1-errata#section_3).
func readableTable(b []byte) bool { return readableFields(b, 0, true) }

// readableFields walks the fields of a table, or the values of an array.
func readableFields(b []byte, depth int, named bool) bool {
	if depth > readableDepth {
		return false
	}
	for entries := 0; len(b) > 0; entries++ {
		if entries >= readableEntries {
			return false
		}
		if named {
			if b = b[min(1+int(b[0]), len(b)):]; len(b) == 0 {
				return false
			}
		}
		size, container := fieldSize(b)
		if size < 0 || size > len(b)-1 {
			return false
		}
		if container && !readableFields(b[5:1+size], depth+1, b[0] == 'F') {
			return false
		}
		b = b[1+size:]
	}
	return true
}

// fieldSize returns how many bytes follow a field's type octet, -1 when they are not
// known, and whether they are a table or an array.
func fieldSize(b []byte) (size int, container bool) {
	switch b[0] {
	case 'V':
		return 0, false
	case 't', 'b', 'B':
		return 1, false
	case 's', 'u':
		return 2, false
	case 'I', 'i', 'f':
		return 4, false
	case 'D':
		return 5, false
	case 'l', 'd', 'T':
		return 8, false
	case 'S', 'x', 'A', 'F':
		if len(b) < 5 {
			return -1, false
		}
		return 4 + int(binary.BigEndian.Uint32(b[1:])), b[0] == 'A' || b[0] == 'F'
	default:
		return -1, false
	}
}
