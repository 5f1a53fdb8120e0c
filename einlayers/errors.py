"""The one error for a value that a field cannot take; it teaches the same way in Python, in the CLI and over HTTP."""


def shorten(text: str, length: int = 100) -> str:
    """The text, or its beginning where it is longer than a line should be."""
    return text if len(text) <= length else text[: length - 3] + "..."


class FieldError(ValueError):
    """A field was given a value outside its domain: which field, what was expected, what came."""

    def __init__(self, field: str, *, expected: str, got: object) -> None:
        self.field = field
        self.expected = expected
        self.got = got
        super().__init__(f"{field}: expected {expected}, got {self.shown}")

    @property
    def shown(self) -> str:
        """What came, as ASCII and no longer than a line: it may be anything that somebody sent."""
        try:
            text = ascii(self.got)
        except ValueError:  # an integer of more digits than Python prints
            text = "a number too large to print"
        return shorten(text)

    def __reduce__(self) -> tuple[object, ...]:
        # Exceptions pickle by their positional arguments; ours are keywords, and errors cross process borders.
        return _rebuild, (self.field, self.expected, self.got)


def _rebuild(field: str, expected: str, got: object) -> FieldError:
    return FieldError(field, expected=expected, got=got)
