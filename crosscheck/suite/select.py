"""``-k``: words with ``and``, ``or``, ``not`` and parentheses."""

from __future__ import annotations

import re
from collections.abc import Callable

from crosscheck.errors import InvalidArgument

__all__ = ["Selection", "parse_selection", "selects"]

Selection = Callable[[Callable[[str], bool | None]], bool | None]
"""From what is known of each word (yes, no, None: unknown) to what is known of the whole."""

_TOKEN = re.compile(r"\(|\)|[^\s()]+")


def selects(selection: Selection, text: str, *, complete: bool = True) -> bool:
    """Whether ``text`` is selected: a word holds where it is a part of it, in any case.

    Args:
        complete: False: there is more to the text than is known (a pair that could not be loaded
            has candidates of unknown names). Then only what is certainly not meant is left out.
    """
    lowered = text.lower()

    def holds(word: str) -> bool | None:
        return True if word in lowered else (False if complete else None)

    return selection(holds) is not False


def parse_selection(text: str) -> Selection:
    """``mlp and not (keras or jax)`` -> Selection. ``not`` binds tightest, then ``and``.

    Raises:
        InvalidArgument: another form.
    """
    tokens = _TOKEN.findall(text)
    parser = _Parser(text, tokens)
    selection = parser.either()
    if parser.next is not None:
        hint = "put `and` or `or` between words" if parser.next != ")" else "`(` is missing"
        raise parser.error(f"`{parser.next}` is unexpected: {hint}")
    return selection


class _Parser:
    def __init__(self, text: str, tokens: list[str]) -> None:
        self._text, self._tokens, self._at = text, tokens, 0

    @property
    def next(self) -> str | None:
        return self._tokens[self._at] if self._at < len(self._tokens) else None

    def error(self, reason: str) -> InvalidArgument:
        return InvalidArgument(
            f"-k {self._text!r}: {reason}. Write words with `and`, `or`, `not` and parentheses, "
            "for example 'mlp and not keras'"
        )

    def _take(self, *words: str) -> bool:
        taken = self.next is not None and self.next.lower() in words
        self._at += taken
        return taken

    def either(self) -> Selection:
        left = self._both()
        while self._take("or"):
            left = _or(left, self._both())
        return left

    def _both(self) -> Selection:
        left = self._one()
        while self._take("and"):
            left = _not(_or(_not(left), _not(self._one())))
        return left

    def _one(self) -> Selection:
        if self._take("not"):
            return _not(self._one())
        if self._take("("):
            inner = self.either()
            if not self._take(")"):
                raise self.error("`)` is missing")
            return inner
        word = self.next
        if word is None or word == ")" or word.lower() in ("and", "or"):
            raise self.error("a word is missing " + (f"before `{word}`" if word else "at the end"))
        self._at += 1
        lowered = word.lower()
        return lambda holds: holds(lowered)


def _or(left: Selection, right: Selection) -> Selection:
    def whole(holds: Callable[[str], bool | None]) -> bool | None:
        known = left(holds), right(holds)
        return True if True in known else (None if None in known else False)

    return whole


def _not(inner: Selection) -> Selection:
    def whole(holds: Callable[[str], bool | None]) -> bool | None:
        known = inner(holds)
        return None if known is None else not known

    return whole
