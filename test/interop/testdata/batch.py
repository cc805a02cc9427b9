"""The wire format of the batch lane, without any package: a batch is field 1 of a
message in the wire format of protocol buffers, once for each record.
"""

CALLS = "application/vnd.amqpx.calls.v1"
ANSWERS = "application/vnd.amqpx.answers.v1"

RECORD = 1
CALL_ID, CALL_METHOD, CALL_BODY, CALL_TIMEOUT_MS = 1, 2, 3, 4
ANSWER_ID, ANSWER_BODY, ANSWER_CODE = 1, 2, 3

VARINT, FIXED64, COUNTED, FIXED32 = 0, 1, 2, 5


def read_varint(data, at):
    number = shift = 0
    while True:
        byte = data[at]
        at += 1
        number |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return number, at


def fields(data):
    """Yields (number, value); the value is an int or bytes."""
    at = 0
    while at < len(data):
        tag, at = read_varint(data, at)
        number, kind = tag >> 3, tag & 7
        if kind == VARINT:
            value, at = read_varint(data, at)
        elif kind == COUNTED:
            size, at = read_varint(data, at)
            value, at = data[at : at + size], at + size
            if len(value) != size:
                raise ValueError("a field ends after its message")
        elif kind in (FIXED64, FIXED32):
            at += 8 if kind == FIXED64 else 4
            continue
        else:
            raise ValueError(f"wire type {kind}")
        yield number, value


def records(body):
    """Returns the records of a batch, each as {number: value}."""
    return [dict(fields(record)) for number, record in fields(body) if number == RECORD]


def varint(number):
    out = bytearray()
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def message(*pairs):
    """Encodes (number, value) pairs; a value is an int or bytes."""
    out = bytearray()
    for number, value in pairs:
        if isinstance(value, int):
            out += varint(number << 3 | VARINT) + varint(value)
        else:
            out += varint(number << 3 | COUNTED) + varint(len(value)) + value
    return bytes(out)


def batch(all_records):
    return message(*((RECORD, record) for record in all_records))
