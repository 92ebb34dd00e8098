"""What a word is, in scripts with and without spaces. Notebooks 10 to 12.

For `re`, the vowel signs of many scripts are no letters, and a Chinese paragraph is one word.

Source: the Unicode Standard, chapter 6 (combining marks) and annex 29 (scripts without spaces).
"""

from __future__ import annotations

import re
from collections.abc import Iterator

# Inside a character class: Thai, Lao, Burmese, Khmer, kana and Chinese, written without spaces.
UNSPACED = (
    "\u0e01-\u0e3a\u0e40-\u0e4e\u0e81-\u0ece\u1000-\u103f\u1780-\u17d3"
    "\u3005-\u3007\u3041-\u309f\u30a1-\u30fa\u30fc-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\U00020000-\U0003ffff"
)
# Inside a character class: accents, points and vowel signs that belong to the letter before.
_MARKS = (
    "\u0300-\u036f\u0483-\u0487\u0591-\u05bd\u05bf\u05c1-\u05c2\u05c4-\u05c5\u05c7\u0610-\u061a"
    "\u064b-\u065f\u0670\u06d6-\u06dc\u06df-\u06e8\u06ea-\u06ed\u0900-\u0963\u0980-\u0df3"
    "\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\ufe20-\ufe2f\u200c\u200d"
)
_LETTER = rf"(?:[^\W_{UNSPACED}][{_MARKS}]*)"
# A word, with apostrophes inside, or a run of an unspaced script.
WORD = re.compile(rf"[{UNSPACED}]+|{_LETTER}+(?:['’]{_LETTER}+)*")

LONGEST_WORD = 64  # characters; the plays of Shakespeare have none longer
_COUNTED = re.compile(
    rf"[{UNSPACED}]|[^\s{UNSPACED}]{{1,{LONGEST_WORD}}}(?![^\s{UNSPACED}])|[^\s{UNSPACED}]"
)


def counted_spans(text: str) -> Iterator[tuple[int, int]]:
    """Yield where each word that counts for a passage's length starts and ends.

    That is a run without white space; in scripts without spaces each character, which is about a
    token to an encoder; and where a run is longer than any word (an address, data), each of its
    characters up to the last `LONGEST_WORD`.

    >>> [("I 北京 go"[a:b]) for a, b in counted_spans("I 北京 go")]
    ['I', '北', '京', 'go']
    """
    return (match.span() for match in _COUNTED.finditer(text))


def pieces(word: str) -> list[str]:
    """Return a word as it is; a run of an unspaced script as its characters and their pairs.

    >>> pieces("fox"), pieces("天安门")
    (['fox'], ['天', '天安', '安', '安门', '门'])
    """
    if not re.match(f"[{UNSPACED}]", word):
        return [word]
    return [word[i : i + n] for i in range(len(word)) for n in (1, 2) if i + n <= len(word)]
