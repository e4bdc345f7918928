"""SQuAD: files, windows over texts, answers and their scores."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from cloudai import errors
from cloudai.benchmarking import squad

CONTEXT = "The old bridge was built by Ada in 1815. It crosses the river Neva near the mill. " * 3
ASKED = [("Who built the old bridge?", "Ada"), ("When was it built?", "1815"), ("What does it cross?", "the river Neva")]


def content(asked=ASKED, context=CONTEXT):
    questions = [
        {"id": str(number), "question": question, "answers": [{"text": right, "answer_start": context.index(right)}]}
        for number, (question, right) in enumerate(asked)
    ]
    return json.dumps({"data": [{"paragraphs": [{"context": context, "qas": questions}]}]}).encode()


def tokenizer():
    words = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    words.train_from_iterator([CONTEXT, *(f"{q} {a}" for q, a in ASKED)], trainers.WordLevelTrainer(special_tokens=special))
    pair = "[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1"
    words.post_processor = processors.TemplateProcessing(pair=pair, special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]")


QUESTIONS = squad.read_questions(content(), "train.json")


def test_a_file_is_read():
    assert [question.text for question in QUESTIONS] == [question for question, _ in ASKED]
    assert all(q.context[q.starts[0] :].startswith(q.answers[0]) for q in QUESTIONS)


@pytest.mark.parametrize("bad", [b"", b"[]", b'{"data": 3}', b'{"data": [{"paragraphs": [{}]}]}', b'{"data": []}'])
def test_another_file_is_refused(bad):
    with pytest.raises(errors.DataError, match=r"train\.json"):
        squad.read_questions(bad, "train.json")


@pytest.mark.parametrize("length", [128, 32])
def test_the_span_of_a_window_is_the_answer(length):
    features = squad.features_of(QUESTIONS, tokenizer(), length)
    assert len(features.question) > len(QUESTIONS) if length == 32 else len(features.question) == len(QUESTIONS)
    found = set()
    for number, (first, last), offsets in zip(features.question, features.spans._spans.tolist(), features.offsets, strict=True):
        if last:
            found.add(number)
            assert QUESTIONS[number].context[offsets[first, 0] : offsets[last, 1]] == QUESTIONS[number].answers[0]
    assert found == set(range(len(QUESTIONS)))


class Oracle(torch.nn.Module):
    """Knows the spans of the windows, and is surest of those that hold an answer."""

    def __init__(self, features):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.ids, self.spans = features.spans._ids, features.spans._spans

    def forward(self, ids, mask, types):
        scores = torch.zeros(2, *ids.shape)
        for row, tokens in enumerate(ids):
            same = (self.ids[:, : len(tokens)] == tokens).all(dim=1).nonzero()[0, 0]
            first, last = self.spans[same].tolist()
            scores[0, row, first] = scores[1, row, last] = 5.0 if last else 0.0
        return scores[0], scores[1]


@pytest.mark.parametrize("length", [128, 32])
def test_right_spans_give_right_answers(length):
    features = squad.features_of(QUESTIONS, tokenizer(), length)
    given = squad.answers(Oracle(features), features, QUESTIONS)
    assert squad.scores_of(given, QUESTIONS) == {"f1": 100.0, "exact_match": 100.0}


def test_an_answer_never_goes_backwards_or_beyond_the_text():
    features = squad.features_of(QUESTIONS[:1], tokenizer(), 128)
    length = features.offsets.shape[1]
    text = np.flatnonzero(features.offsets[0, :, 1] > 0)
    starts, ends = np.zeros(length), np.zeros(length)
    starts[text[-1]] = ends[text[0]] = 9.0  # the best start lies behind the best end
    starts[0] = ends[0] = 99.0  # and the very best are no text at all
    score, answer = squad._best_span(starts, ends, features.offsets[0], QUESTIONS[0].context)
    assert score == 9.0
    assert answer in QUESTIONS[0].context
    assert answer


def test_only_real_tokens_count(monkeypatch):
    features = squad.features_of(QUESTIONS, tokenizer(), 128)
    seen = []

    class Module(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def forward(self, ids, mask, types):
            seen.append((ids, mask, types))
            return ids.float() * self.weight, ids.float() * self.weight

    loss = features.spans.loss(Module(), torch.arange(3))
    ((ids, mask, types),) = seen
    assert ids.shape[1] == features.spans.lengths.max() < 128
    assert mask.sum(dim=1).tolist() == features.spans.lengths.tolist()
    assert set(types.unique().tolist()) == {0, 1}
    assert float(loss.detach()) == pytest.approx(3 * np.log(ids.shape[1]), rel=1e-5)


@pytest.mark.parametrize(
    ("given", "right", "f1", "exact"),
    [
        ("Ada", "ada.", 1.0, True),
        ("the river", "a River", 1.0, True),
        ("river Neva", "the river", 2 / 3, False),
        ("", "Ada", 0.0, False),
        ("Bob", "Ada", 0.0, False),
    ],
)
def test_scores_are_the_official_ones(given, right, f1, exact):
    assert squad.f1(given, right) == pytest.approx(f1)
    assert squad.exact_match(given, right) is exact


def test_the_best_of_several_right_answers_counts():
    question = squad.Question("1", "Who?", "Ada Bob", ("Ada", "Bob"), (0, 4))
    assert squad.scores_of(["bob"], [question]) == {"f1": 100.0, "exact_match": 100.0}
