from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders

from cloudai.serving.generation_texts import TextStream
from tests.serving import writers

TOKENIZER = writers.tokenizer()
LETTERS = {letter: number for letter, number in TOKENIZER.get_vocab().items() if len(letter) == 1}


def tokens_of(text: bytes) -> list[int]:
    return [BYTES[byte] for byte in text]


def _bytes() -> dict[int, int]:
    """Map each byte to its token: the printable ones are themselves, the others follow from 256 on (as GPT-2 has it)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    letter = {byte: chr(byte) for byte in printable} | {byte: chr(256 + n) for n, byte in enumerate(others)}
    return {byte: LETTERS[letter[byte]] for byte in range(256)}


BYTES = _bytes()


def streamed(tokens, stop=(), opening=()):
    stream = TextStream(TOKENIZER.decode, stop=stop, opening=opening)
    pieces = []
    for token in tokens:
        pieces.append(stream.add(token))
        if stream.stopped:
            break
    return [*pieces, stream.end()], stream.stopped


@given(st.text())
def test_the_pieces_of_a_text_are_the_text_and_never_half_a_character(text):
    pieces, _ = streamed(tokens_of(text.encode()))
    assert "".join(pieces) == text
    assert all("\ufffd" not in piece for piece in pieces) or "\ufffd" in text


@given(st.binary(max_size=80))
def test_bytes_that_are_no_text_come_out_as_the_tokenizer_writes_them(content):
    tokens = tokens_of(content)
    pieces, _ = streamed(tokens)
    assert "".join(pieces) == TOKENIZER.decode(tokens)


LETTER = st.sampled_from("ab€")


@given(st.text(LETTER, max_size=30), st.lists(st.text(LETTER, min_size=1, max_size=4), min_size=1, max_size=3))
def test_nothing_of_a_stop_string_and_nothing_after_it_is_told(text, stop):
    pieces, stopped = streamed(tokens_of(text.encode()), stop)
    ends = [text.find(one) + len(one) for one in stop if one in text]
    assert stopped == bool(ends)
    if not ends:
        assert "".join(pieces) == text
        return
    seen = text[: min(ends)]  # whichever stop string is whole first ends the text
    assert "".join(pieces) == seen[: min(seen.find(one) for one in stop if one in seen)]


def test_the_space_between_a_prompt_and_what_follows_it_is_kept():
    words = {"one": 0, "two": 1, "three": 2}
    names = {number: word for word, number in words.items()}
    stream = TextStream(lambda tokens: " ".join(names[token] for token in tokens), opening=[0])
    assert [stream.add(1), stream.add(2), stream.end()] == [" two", " three", ""]
    alone = TextStream(lambda tokens: " ".join(names[token] for token in tokens))
    assert [alone.add(1), alone.add(2)] == ["two", " three"]


def test_a_run_of_bytes_that_becomes_a_character_late_is_waited_for():
    """Tokenizers of Llama's kind show a whole run of byte tokens as unfinished until its end is there."""
    decoder = decoders.ByteFallback()
    names = {byte: f"<0x{byte:02X}>" for byte in range(256)}
    stream = TextStream(lambda tokens: decoder.decode([names[token] for token in tokens]))
    pieces = [stream.add(byte) for byte in "é🎉".encode()]
    assert "".join([*pieces, stream.end()]) == "é🎉"
