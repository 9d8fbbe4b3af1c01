"""Captions: the words that stand beside a window when the objective is `clap`, and when two of them say the same.

Captions made from class names follow the templates here. A run on those is *supervised*: the class names are labels.
"""

from __future__ import annotations

import re
import unicodedata

MOST_CHARACTERS = 200
"""A caption that travels is never longer."""

TEMPLATES = (
    "the sound of {}",
    "a recording of {}",
    "{} can be heard",
    "a microphone picks up {}",
    "somewhere there is {}",
)
"""What captions are made of where there are only class names. Evaluation asks with other sentences."""

_HUMP = re.compile(r"(?<=[a-z])(?=[A-Z])")
_NO_WORD = re.compile(r"[\W_]+")
_NUMBER = re.compile(r"^[\d\s]+(?=\D)")
_FILLED = tuple(re.compile(template.format("(.+)")) for template in TEMPLATES)


def normalised(text: str) -> str:
    """Lower case, words only, single spaces: captions that differ in spelling alone become the same."""
    return " ".join(_NO_WORD.sub(" ", unicodedata.normalize("NFKC", text).casefold()).split())


def class_words(label: str) -> str:
    """The words in a class's name: ``crying_baby``, ``SeaWaves`` and ``001 - Dog bark`` are read as people would."""
    words = normalised(_HUMP.sub(" ", label))
    return _NUMBER.sub("", words).strip() or words


def class_captions(label: str) -> tuple[str, ...]:
    """Every caption that a class's name gives, none if it has no words in it."""
    words = class_words(label)
    return tuple(template.format(words)[:MOST_CHARACTERS] for template in TEMPLATES) if words else ()


def class_named(caption: str) -> str | None:
    """The class in a caption made from a class's name; None for a caption that a person wrote."""
    text = normalised(caption)
    return next((found[1] for pattern in _FILLED if (found := pattern.fullmatch(text))), None)


def identity(caption: str | None) -> str:
    """What a caption says: two windows with the same are not negatives of each other. Empty: it says nothing.

    All captions made from one class's name say the same, whichever template they follow.
    """
    return "" if caption is None else class_named(caption) or normalised(caption)


def travelling(text: str) -> str:
    """``text`` as it may travel: printable, single spaces, cut between two words at `MOST_CHARACTERS`."""
    plain = " ".join("".join(each if each.isprintable() else " " for each in text).split())
    if len(plain) <= MOST_CHARACTERS:
        return plain
    return plain[: MOST_CHARACTERS + 1].rpartition(" ")[0] or plain[:MOST_CHARACTERS]
