"""How the runner's kernels pack their messages: text that is no text must not lose a message.

A lone surrogate (half of an emoji that was cut in two) can't be written as UTF-8. The default
packer then fails, and with it goes the error that the cell raised, or what it printed.
"""

from __future__ import annotations

import json
import re
from typing import Any

from jupyter_client.jsonutil import json_clean, json_default

# What surrogateescape made of single bytes (dc80 to dcff) becomes those bytes again, as always.
LONE = re.compile("[\ud800-\udc7f\udd00-\udfff]")


def pack(message: Any) -> bytes:
    """Return a message as JSON in UTF-8, each lone surrogate in it replaced by �."""
    try:
        text = json.dumps(message, default=json_default, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError):
        text = json.dumps(json_clean(message), default=json_default, ensure_ascii=False)
    return LONE.sub("\ufffd", text).encode("utf-8", errors="surrogateescape")
