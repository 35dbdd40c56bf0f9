"""How JSON is written that a schema describes, in llguidance's words; needs no llguidance itself."""

from typing import Any

# one way to write a value, as most models do, so that none loses itself in white space
_WRITTEN = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


def written(lenient: bool) -> dict[str, Any]:
    """The options. lenient: keywords of a schema that are not known are passed over."""
    return {**_WRITTEN, "lenient": True} if lenient else dict(_WRITTEN)
