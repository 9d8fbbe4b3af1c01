from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.captions import (
    MOST_CHARACTERS,
    TEMPLATES,
    class_captions,
    class_named,
    class_words,
    identity,
    normalised,
    travelling,
)


@pytest.mark.parametrize(
    ("label", "words"),
    [
        ("rain", "rain"),
        ("crying_baby", "crying baby"),
        ("sea_waves", "sea waves"),
        ("SeaWaves", "sea waves"),
        ("clock-tick", "clock tick"),
        ("001 - Dog bark", "dog bark"),
        ("  Fire.Crackling ", "fire crackling"),
        ("42", "42"),
        ("Vögel", "vögel"),
    ],
)
def test_a_class_folder_is_read_as_people_would(label: str, words: str) -> None:
    assert class_words(label) == words


def test_every_caption_of_a_class_leads_back_to_its_words_and_no_two_are_the_same() -> None:
    captions = class_captions("crying_baby")
    assert len(set(captions)) == len(TEMPLATES) >= 3
    assert {class_named(caption) for caption in captions} == {"crying baby"}
    assert {identity(caption) for caption in captions} == {"crying baby"}


def test_a_caption_that_a_person_wrote_names_no_class() -> None:
    assert class_named("Heavy rain falls on a tin roof.") is None
    assert identity("Heavy rain falls on a tin roof.") == "heavy rain falls on a tin roof"


def test_spelling_alone_makes_no_other_meaning() -> None:
    assert identity("The  SOUND of: rain!") == identity("the sound of rain") == "rain"
    assert identity("A dog barks.") == identity("a dog   barks")
    assert identity("A dog barks.") != identity("a dog howls")


@pytest.mark.parametrize("nothing", [None, "", "  ", "?!", "___"])
def test_a_caption_without_words_says_nothing(nothing: str | None) -> None:
    assert identity(nothing) == ""


def test_a_class_without_words_gives_no_captions() -> None:
    assert class_captions("___") == ()


@given(st.text(max_size=400))
def test_whatever_is_in_a_file_may_travel_afterwards(text: str) -> None:
    sent = travelling(text)
    assert len(sent) <= MOST_CHARACTERS
    assert sent.isprintable()
    assert travelling(sent) == sent
    if len(" ".join(text.split())) <= MOST_CHARACTERS and text.isprintable():
        assert normalised(sent) == normalised(text)


def test_a_long_caption_is_cut_between_two_words() -> None:
    sent = travelling("thunder " * 40)
    assert set(sent.split()) == {"thunder"}
    assert MOST_CHARACTERS - len("thunder ") <= len(sent) <= MOST_CHARACTERS
    assert len(travelling("a" * 300)) == MOST_CHARACTERS
