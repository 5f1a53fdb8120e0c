"""Names of data sets of Hugging Face, and of what is in them: never a path, an address or the name of a program."""

import re

from einlayers.errors import FieldError

_PART = re.compile(r"[A-Za-z0-9_]+([-.][A-Za-z0-9_]+)*")
_LONGEST = 96


def check_data_set(name: object) -> None:
    """Refuse anything but ``OWNER/NAME``.

    A name without an owner is refused too: the library would take ``text`` or ``parquet`` for one of its loaders, and read
    with it what lies in the working directory. ``buckets`` is no owner but the beginning of an address, and a name that ends
    in ``.py`` that of a program.

    Raises:
        FieldError: it is something else.
    """
    parts = name.split("/") if isinstance(name, str) else []
    fits = len(parts) == 2 and all(map(_is_part, parts))
    if not fits or parts[0] == "buckets" or parts[1].endswith((".py", ".git")):
        raise FieldError("name", expected="a data set of Hugging Face as OWNER/NAME", got=name)


def check_part(field: str, value: object) -> None:
    """Refuse anything but letters, digits and underscores, with single dots and hyphens between them.

    Raises:
        FieldError: it is something else, or longer than 96 characters.
    """
    if not (isinstance(value, str) and _is_part(value)):
        expected = f"at most {_LONGEST} letters, digits and underscores, with single dots or hyphens between them"
        raise FieldError(field, expected=expected, got=value)


def _is_part(text: str) -> bool:
    return len(text) <= _LONGEST and _PART.fullmatch(text) is not None
