"""Files of SQuAD."""

from __future__ import annotations

import json

import pytest
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


def test_a_file_is_read():
    read = squad.read_questions(content(), "train.json")
    assert read["inputs"].tolist() == [question for question, _ in ASKED]
    assert read["targets"].tolist() == [right for _, right in ASKED]
    assert read["answers"].tolist() == [1, 1, 1]
    for context, start, right in zip(read["contexts"], read["starts"], read["targets"], strict=True):
        assert context[start:].startswith(right)


def test_questions_without_an_answer_are_left_out():
    article = json.loads(content())
    article["data"][0]["paragraphs"][0]["qas"][1]["answers"] = []
    assert len(squad.read_questions(json.dumps(article).encode(), "train.json")["inputs"]) == 2


@pytest.mark.parametrize("bad", [b"", b"[]", b'{"data": 3}', b'{"data": [{"paragraphs": [{}]}]}', b'{"data": []}'])
def test_another_file_is_refused(bad):
    with pytest.raises(errors.DataError, match=r"train\.json"):
        squad.read_questions(bad, "train.json")
