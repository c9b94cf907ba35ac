"""What a Clerk that normalizes makes of an address. Whether Clerk does so, and how, is not known."""

from __future__ import annotations

import re
import unicodedata
from typing import Callable, Iterable


def _without_white_space(address: str) -> str:
    return re.sub(r"\s+", "", address)


def _with_punycode(address: str) -> str:
    """The domain of bücher.example is xn--bcher-kva.example."""
    local, at, domain = address.rpartition("@")
    return local + at + ".".join(_ascii_label(label) for label in domain.split("."))


def _ascii_label(label: str) -> str:
    if label.isascii():
        return label
    return "xn--" + unicodedata.normalize("NFC", label.lower()).encode("punycode").decode()


def _without_tag(address: str) -> str:
    """ann+tag@ is ann@: what no client can foresee."""
    return re.sub(r"\+[^@]*@", "@", address)


NORMALIZATIONS = {
    "white-space": _without_white_space,
    "punycode": _with_punycode,
    "lower-case": str.lower,
    "tag": _without_tag,
}


def normalizer(names: Iterable[str]) -> Callable[[str], str]:
    """All of these, one after the other."""

    def normalize(address: str) -> str:
        for name in names:
            address = NORMALIZATIONS[name](address)
        return address

    return normalize
