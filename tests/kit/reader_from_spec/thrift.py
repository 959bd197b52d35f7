"""As much of Thrift's compact protocol as the header of a Parquet page needs."""

from tests.kit.reader_from_spec.refusing import RefusedError, must


def read_struct(data):
    """The fields of a struct by number, and its length."""
    try:
        return _struct(data, 0)
    except IndexError:
        raise RefusedError("the header of a page is short") from None


def _struct(data, at):
    fields, number = {}, 0
    while data[at] != 0:
        step, kind, at = data[at] >> 4, data[at] & 15, at + 1
        before = number
        if step:
            number += step
        else:
            number, at = _zigzag(data, at)
        must(number > before, "fields of a header ascend")
        fields[number], at = _value(data, at, kind)
    return fields, at + 1


def _value(data, at, kind):
    if kind in (1, 2):
        return kind == 1, at
    if kind in (4, 5, 6):
        return _zigzag(data, at)
    if kind == 12:
        return _struct(data, at)
    must(kind == 8, "a field of a header of a page")
    size, at = _varint(data, at)
    return None, at + size


def _zigzag(data, at):
    value, at = _varint(data, at)
    return value >> 1 ^ -(value & 1), at


def _varint(data, at):
    value = shift = 0
    while True:
        value |= (data[at] & 127) << shift
        at, shift = at + 1, shift + 7
        if data[at - 1] < 128:
            return value, at
        must(shift < 64, "a number in a header of a page")
