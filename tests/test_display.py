"""Text and HTML say the same, escape everything and never raise."""

from __future__ import annotations

import pytest

from cloudai.display import Card, Curve, Shown, Table, duration, money, nearest

EVIL = "<script>alert(1)</script>&"


class Thing(Shown):
    def __init__(self, card):
        self._card = card

    def __repr__(self):
        return "Thing()"

    def card(self):
        if isinstance(self._card, Exception):
            raise self._card
        return self._card


CARD = Card(
    "Title", [("fact", "value")], [Curve("loss", [1, 2, 3], [3.0, 2.0, 1.0])], [Table(("a", "b"), [("1", "2")])], ["a note"]
)


def test_text_and_html_carry_the_same_words():
    text, html = CARD.text(), CARD.html()
    for word in ("Title", "fact", "value", "loss", "3 → 1", "a note"):
        assert word in text
        assert word in html


def test_everything_is_escaped():
    card = Card(EVIL, [(EVIL, EVIL)], [Curve(EVIL, [0, 1], [0, 1])], [Table((EVIL,), [(EVIL,)], title=EVIL)], [EVIL])
    assert "<script>" not in card.html()


def test_a_notebook_gets_text_and_html_and_a_repr_is_one_line():
    bundle = Thing(CARD)._repr_mimebundle_()
    assert set(bundle) == {"text/plain", "text/html"}
    assert str(Thing(CARD)) == bundle["text/plain"] == CARD.text()
    assert "\n" not in repr(Thing(CARD))


def test_a_card_that_fails_is_shown_as_such_and_raises_nothing():
    bundle = Thing(ValueError("broken"))._repr_mimebundle_()
    assert bundle == {"text/plain": "<Thing: cannot be shown: broken>"}


def test_columns_are_aligned():
    lines = Table(("name", "n"), [("a", "1"), ("longer", "22")]).text().split("\n")
    assert [line.index(cell) for line, cell in zip(lines[2:], ("1", "22"), strict=True)] == [8, 8]


@pytest.mark.parametrize("values", [[], [1.0], [2.0, 2.0], [float(i) for i in range(5000)]])
def test_curves_of_any_length_are_drawn(values):
    curve = Curve("loss", list(range(len(values))), values)
    assert len(curve.text()) < 120
    assert len(curve.html()) < 12_000


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (0.1234, "0.12 s"), (59.6, "1 min"), (60, "1 min"), (3600, "1 h"), (3660, "1 h 1 min"), (86400 * 3, "3 d")],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_money_is_never_a_bare_number():
    assert [money(x) for x in (0, 0.0004, 0.05, 3, 1234.567)] == ["0 USD", "0.0004 USD", "0.05 USD", "3.00 USD", "1234.57 USD"]
    assert money(2, "EUR") == "2.00 EUR"


def test_nearest_names_the_choice_that_was_meant():
    assert nearest("lcoal", ["ray", "local"]).startswith("did you mean 'local'?")
    assert nearest("zzz", ["ray", "local"]) == "there is: 'local', 'ray'"
    assert "…" in nearest("zzz", [f"name-{i}" for i in range(20)])
