"""Tiny models of several kinds with tokenizers of whole words, made here: no download."""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import BertConfig, GPT2Config, LlamaConfig, PreTrainedTokenizerFast

SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]


def bert(texts: Iterable[str], longest: int = 32) -> tuple[BertConfig, PreTrainedTokenizerFast]:
    inner = _words(texts, SPECIAL)
    pair = {"single": "[CLS] $A [SEP]", "pair": "[CLS] $A [SEP] $B:1 [SEP]:1"}
    inner.post_processor = processors.TemplateProcessing(**pair, special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    names["model_input_names"] = ["input_ids", "token_type_ids", "attention_mask"]
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, model_max_length=longest, **names)
    return BertConfig(vocab_size=len(tokenizer), max_position_embeddings=max(32, longest), **SIZES), tokenizer


def gpt2(texts: Iterable[str], longest: int = 32) -> tuple[GPT2Config, PreTrainedTokenizerFast]:
    tokenizer = _writing(texts, longest)
    ends = {"bos_token_id": 1, "eos_token_id": 1}
    return GPT2Config(vocab_size=len(tokenizer), n_positions=longest, n_embd=16, n_layer=1, n_head=2, **ends), tokenizer


def llama(texts: Iterable[str], longest: int = 32) -> tuple[LlamaConfig, PreTrainedTokenizerFast]:
    tokenizer = _writing(texts, longest)
    ends = {"bos_token_id": 1, "eos_token_id": 1}
    return LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=longest, **SIZES, **ends), tokenizer


def _writing(texts: Iterable[str], longest: int) -> PreTrainedTokenizerFast:
    inner = _words(texts, ["[UNK]", "[END]"])
    return PreTrainedTokenizerFast(tokenizer_object=inner, model_max_length=longest, unk_token="[UNK]", eos_token="[END]")


def _words(texts: Iterable[str], special: list[str]) -> Tokenizer:
    inner = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.train_from_iterator(texts, trainers.WordLevelTrainer(special_tokens=special))
    return inner
