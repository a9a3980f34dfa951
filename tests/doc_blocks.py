"""The code blocks of a page."""

import re

from conftest import REPO


def blocks(page: str, *languages: str) -> list[tuple[str, str]]:
    """Language and text of the fenced blocks of ``docs/PAGE`` in these languages, in order."""
    text = (REPO / "docs" / page).read_text()
    found = re.findall(r"^```(\w+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [(language, code) for language, code in found if language in languages]
