"""A tiny classifier of texts with its tokenizer, made here: no download, no cache."""

from __future__ import annotations

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import DistilBertConfig, DistilBertForSequenceClassification, PreTrainedTokenizerFast

from cloudai.artifacts import text_sources

GOOD = ["a good film", "good fun", "a fine and good day", "so good", "fine work", "good good", "it is fine", "fine film"]
BAD = ["a bad film", "bad luck", "a poor and bad day", "so bad", "poor work", "bad bad", "it is poor", "poor film"]
TEXTS = GOOD + BAD
LABELS = ["pos"] * len(GOOD) + ["neg"] * len(BAD)


def tokenizer(longest: int = 16) -> PreTrainedTokenizerFast:
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    inner = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.train_from_iterator(TEXTS, trainers.WordLevelTrainer(special_tokens=special))
    inner.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=inner, model_max_length=longest, **names)


def config(**options) -> DistilBertConfig:
    sizes = {"dim": 16, "n_heads": 2, "n_layers": 1, "hidden_dim": 32, "max_position_embeddings": 32}
    return DistilBertConfig(vocab_size=len(tokenizer()), **sizes, **options)


def model(*labels: str) -> DistilBertForSequenceClassification:
    """Return a model with random weights, large enough that its scores differ."""
    torch.manual_seed(0)
    names = dict(enumerate(labels))
    made = DistilBertForSequenceClassification(config(id2label=names, label2id={name: i for i, name in names.items()}))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return made.eval()


def folder(path, *labels: str):
    """Write a model and its tokenizer as ``save_pretrained`` does."""
    text_sources.in_folder(path, model(*labels), tokenizer())
    return path
