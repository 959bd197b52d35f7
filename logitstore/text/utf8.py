"""Write text as UTF-8, or say why that cannot be."""

from logitstore.errors import InputError


def utf8(text: str, where: str) -> bytes:
    """Encode text as UTF-8.

    Raises:
        InputError: It holds half of a surrogate pair, which UTF-8 cannot encode; names `where`.
    """
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"{where}: character {error.start:,} is U+{ord(text[error.start]):04X}, half of a "
            "surrogate pair, which UTF-8 cannot hold. Repair the text with "
            "text.encode('utf-16', 'surrogatepass').decode('utf-16', 'replace'), or drop the row."
        ) from error
