"""Tiny models that write and embed texts, with a tokenizer of bytes, made here: no download."""

from __future__ import annotations

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import BertConfig, BertModel, GPT2Config, LlamaConfig, PreTrainedTokenizerFast

from cloudai.artifacts.text_embedders import Embedder
from cloudai.artifacts.text_writers import Writer

CHAT = "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}<assistant>"
CONTEXT = 256


def tokenizer(chat_template: str | None = CHAT, longest: int = CONTEXT) -> PreTrainedTokenizerFast:
    """Return a tokenizer whose tokens are bytes, so that characters come in parts."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<end>": 0, **{letter: number + 1 for number, letter in enumerate(letters)}}
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    names = {"eos_token": "<end>", "pad_token": "<end>", "unk_token": "<end>", "cls_token": "<end>", "sep_token": "<end>"}
    return PreTrainedTokenizerFast(tokenizer_object=inner, model_max_length=longest, chat_template=chat_template, **names)


def shaken(model):
    """Return a model with random weights, large enough that what it writes is not all the same."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 2 / parameter.shape[-1] ** 0.5)
    return model.eval()


def llama(**options):
    from transformers import LlamaForCausalLM

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = {"vocab_size": 257, "intermediate_size": 48, "max_position_embeddings": CONTEXT, **sizes, **options}
    return shaken(LlamaForCausalLM(LlamaConfig(bos_token_id=0, eos_token_id=0, pad_token_id=0, **config)))


def gpt2():
    from transformers import GPT2LMHeadModel

    sizes = {"n_positions": CONTEXT, "n_embd": 32, "n_layer": 2, "n_head": 4}
    return shaken(GPT2LMHeadModel(GPT2Config(vocab_size=257, bos_token_id=0, eos_token_id=0, **sizes)))


def writer(model=None, **options) -> Writer:
    return Writer(model or llama(), tokenizer(**options), {"max_new_tokens": 16})


def embedder() -> Embedder:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    model = BertModel(BertConfig(vocab_size=257, max_position_embeddings=64, **sizes), add_pooling_layer=False)
    return Embedder(shaken(model), tokenizer(longest=48))
