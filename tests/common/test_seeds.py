"""Seeds are bytes of a sha256: changing one would change every random number of a record."""

from __future__ import annotations

import hashlib

import pytest

from alignment_security.common.seeds import seed_from_text


@pytest.mark.parametrize("n_bytes, largest", [(7, 2**56), (4, 2**32)])
def test_seed_from_text_is_the_beginning_of_its_sha256(n_bytes, largest):
    text = "0|n01440764/é.jpg|apgd-ce|0"
    digest = hashlib.sha256(text.encode()).hexdigest()
    seed = seed_from_text(text, n_bytes)
    assert seed == int(digest[: 2 * n_bytes], 16) and 0 <= seed < largest


def test_seed_from_text_of_a_known_text():
    """sha256 of `abc` begins with ba7816bf 8f01cf (FIPS 180-2, appendix B.1)."""
    assert seed_from_text("abc") == 0xBA7816BF8F01CF
    assert seed_from_text("abc", n_bytes=4) == 0xBA7816BF
