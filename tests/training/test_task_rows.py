"""What the loop is given: nothing padded counts, no text sees another, and only what is trained is kept."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from cloudai import errors
from cloudai.artifacts.text_embedders import Embedder
from cloudai.artifacts.text_readers import Reader
from cloudai.artifacts.text_taggers import Tagger
from cloudai.artifacts.text_writers import Writer
from cloudai.specs.texts import Lora
from cloudai.training.adapters import adapted, keep_only_trained, merged
from cloudai.training.tasks import language, measures, parsing
from cloudai.training.tasks.answers import AnswerRows
from cloudai.training.tasks.language import BlockRows
from cloudai.training.tasks.packing import packed
from cloudai.training.tasks.pairs import PairRows
from cloudai.training.tasks.tags import TagRows
from tests.training import small_models

TEXTS = ["a b c", "d e f g h", "a c", "b", "h g f e d c b a a b c d e"]


def drawn(kind, config, tokenizer, classes=()):
    import transformers

    torch.manual_seed(0)
    for name, value in kind.options(classes).items():
        setattr(config, name, value)
    return kind(getattr(transformers, kind.auto).from_config(config).eval(), tokenizer)


def writer(make=small_models.gpt2, longest=12) -> Writer:
    return drawn(Writer, *make(TEXTS, longest))


@pytest.mark.parametrize("make", [small_models.gpt2, small_models.llama])
def test_texts_packed_together_do_not_see_each_other(make):
    model = writer(make)
    rows = BlockRows(model, parsing.parse("causal-lm", TEXTS).arrays)
    assert rows.lengths.max() <= 12
    assert len(rows) < len(TEXTS), "several texts share a block"
    module, every = model.trainable(), torch.arange(len(rows))
    with torch.no_grad():
        together = float(rows.loss(module, every))
        alone = 0.0
        for text in TEXTS:
            ids = torch.tensor([[*model.tokenizer(text)["input_ids"], model.tokenizer.eos_token_id]])
            for piece in ids.split(12, dim=1):
                alone += (
                    float(model.model(input_ids=piece, labels=piece).loss) * (piece.shape[1] - 1) if piece.shape[1] > 1 else 0
                )
    assert together == pytest.approx(alone, rel=1e-4)
    assert rows.weight(every) == sum(len(text.split()) for text in TEXTS) - 1, "the long one is cut once"


def test_blocks_are_nearly_full_and_no_text_is_lost():
    lengths = np.random.default_rng(0).integers(1, 100, 5000).tolist()
    blocks = packed(lengths, 128)
    assert sorted(piece for block in blocks for piece in block) == list(range(5000))
    assert max(sum(lengths[piece] for piece in block) for block in blocks) <= 128
    assert sum(lengths) / (128 * len(blocks)) > 0.98


def test_a_model_that_looks_ahead_cannot_learn_to_continue():
    config, tokenizer = small_models.bert(TEXTS)
    model = Writer(AutoModelForCausalLM.from_config(config).eval(), tokenizer)
    with pytest.raises(errors.SpecError, match="a bert looks ahead"):
        language.packs(model)


def test_a_question_with_a_long_context_has_several_windows_of_one_row():
    context = " ".join(["a"] * 30 + ["d", "e"] + ["b"] * 9)
    model = drawn(Reader, *small_models.bert(["a b c d e"], longest=16))
    arrays = parsing.parse("question-answering", ([context, "d e"], ["c", "c"], ["d e", "e"])).arrays
    rows = AnswerRows(model, arrays)
    assert len(rows) == 2
    windows, spans = rows._windows[0], rows._spans[0]
    assert rows.weight(torch.tensor([0])) == len(windows) > 3
    held = [(window, span) for window, span in zip(windows, spans, strict=True) if span != (0, 0)]
    assert held
    for window, (first, last) in held:
        assert context[window.offsets[first, 0] : window.offsets[last, 1]] == "d e"
    module = model.trainable().requires_grad_(False)
    apart = sum(float(rows.loss(module, torch.tensor([row]))) for row in (0, 1))
    assert float(rows.loss(module, torch.tensor([0, 1]))) == pytest.approx(apart, rel=1e-4)
    assert model.windows(["c " * 50], [context])[0].ids.count(3) == 2, "a long question is cut off, not refused"


def test_every_token_of_a_word_is_learned_and_cut_words_count_as_missed():
    config, tokenizer = small_models.bert(["U . S a b"], longest=8)
    model = drawn(Tagger, config, tokenizer, ("B-X", "I-X", "O"))
    rows = TagRows(
        model, parsing.parse("token-classification", ([["U.S.", "a"], ["b"] * 9], [["B-X", "O"], ["I-X"] * 9])).arrays
    )
    b, i, o = (model.labels.index(tag) for tag in ("B-X", "I-X", "O"))
    assert rows._targets[0].tolist() == [-100, b, i, i, i, o, -100]
    assert rows.weight(torch.tensor([1])) == 6
    assert rows.measure(model.trainable(), torch.tensor([1]))["val_accuracy"] <= 6 / 9


def test_equal_partners_are_no_negatives():
    model = drawn(Embedder, *small_models.bert(TEXTS))
    rows = PairRows(model, parsing.parse("embeddings", (["a", "b", "c"], ["d", "d", "e"])).arrays)
    module = model.trainable()
    assert rows.lengths is None
    assert float(rows.loss(module, torch.tensor([0, 1]))) == 0.0
    assert float(rows.loss(module, torch.tensor([0, 2]))) > 0


def test_measures_are_those_of_the_field():
    assert measures.exact_match("Rome", []) == 0
    assert measures.exact_match("", []) == 1
    assert measures.token_f1("big red car", ["the red car", "bus"]) == pytest.approx(0.8)
    gold = [["B-PER", "I-PER", "O", "B-LOC"], ["S-LOC", "O"]]
    assert measures.entity_f1(gold, [["B-PER", "I-PER", "O", "B-PER"], ["S-LOC", "O"]]) == pytest.approx(2 / 3)
    assert measures.entity_f1([["PER", "PER", "O"]], [["PER", "PER", "O"]]) == 1.0


@pytest.mark.parametrize("kind", [Tagger, Reader, Writer, Embedder])
def test_with_adapters_only_they_and_new_layers_are_trained_and_kept(kind):
    make = small_models.gpt2 if kind is Writer else small_models.bert
    model = drawn(kind, *make(TEXTS, 16), classes=("a", "b") if kind is Tagger else ())
    weights = sum(weight.numel() for weight in model.model.parameters())
    model = adapted(model, Lora(rank=1))
    module = model.trainable()
    keep_only_trained(module)
    trained = {name for name, weight in module.named_parameters() if weight.requires_grad}
    state = module.state_dict()
    assert trained
    assert all("lora" in name or "classifier" in name or "qa_outputs" in name for name in trained), trained
    assert {name for name, _ in module.named_parameters()} & set(state) == trained
    assert sum(weight.numel() for weight in state.values()) < weights / 2
    with torch.no_grad():
        for name, weight in module.named_parameters():
            if name in trained:
                weight.add_(0.1)
    changed = {name: weight.clone() for name, weight in module.state_dict().items()}
    module.load_state_dict(state)
    module.load_state_dict(changed)
    example = {name: np.array(["a b c"], dtype=object) for name in kind.inputs}
    if kind is not Writer:
        before = model.answers(example)
        after = merged(model).answers(example)
        for name, array in before.items():
            if array.dtype.kind == "f":
                assert np.allclose(array, after[name], atol=1e-4)
