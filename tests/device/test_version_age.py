"""How old the newest version is, as a device can know it."""

from __future__ import annotations

import pytest

from device.version_age import VersionAge


def test_nothing_is_known_before_a_second_version_shows_how_long_one_lasts() -> None:
    versions = VersionAge()
    versions.heard(-1, 0)
    versions.heard(7, 10)
    assert versions.age(40) is None


def test_it_grows_from_nothing_to_one_when_the_next_is_due_and_beyond() -> None:
    versions = VersionAge()
    for version, windows in ((0, 0), (1, 48), (1, 60)):
        versions.heard(version, windows)
    assert [versions.age(windows) for windows in (48, 72, 96, 144)] == [0.0, 0.5, 1.0, 2.0]


def test_versions_that_were_missed_share_the_time() -> None:
    versions = VersionAge()
    versions.heard(3, 0)
    versions.heard(6, 48)
    assert versions.age(56) == pytest.approx(0.5)


def test_a_run_that_begins_anew_or_two_versions_at_once_say_nothing_of_how_long_one_lasts() -> None:
    versions = VersionAge()
    versions.heard(5, 0)
    versions.heard(6, 48)
    versions.heard(0, 60)
    versions.heard(1, 60)
    assert versions.age(84) == pytest.approx(0.5)
