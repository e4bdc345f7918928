from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cloudai.serving.generation import Sampling
from cloudai.serving.generation_sampling import Sampler, choose

LOGITS = torch.log(torch.tensor([0.5, 0.3, 0.15, 0.05]))


def drawn(count=4000, logits=LOGITS, **options):
    sampler = Sampler(Sampling(max_tokens=1, seed=3, **options))
    found = Counter(sampler.pick(logits)[0] for _ in range(count))
    return [found[token] / count for token in range(len(logits))]


def test_tokens_are_drawn_by_their_probabilities_and_the_temperature():
    assert drawn() == pytest.approx([0.5, 0.3, 0.15, 0.05], abs=0.03)
    squared = np.square([0.5, 0.3, 0.15, 0.05])
    assert drawn(temperature=0.5) == pytest.approx(squared / squared.sum(), abs=0.03)
    assert drawn(10, temperature=0) == [1, 0, 0, 0]


def test_top_p_draws_among_the_fewest_that_have_it_together():
    assert drawn(top_p=0.75) == pytest.approx([0.5 / 0.8, 0.3 / 0.8, 0, 0], abs=0.03)
    assert drawn(10, top_p=0.01) == [1, 0, 0, 0]


def test_top_p_of_many_tokens_alike_looks_at_all_of_them():
    tokens = {Sampler(Sampling(max_tokens=1, seed=seed, top_p=0.9)).pick(torch.zeros(5000))[0] for seed in range(50)}
    assert len(tokens) > 40


@given(st.integers(-(2**63), 2**63 - 1), st.integers(0, 3))
def test_a_seed_draws_the_same_again_and_each_choice_is_another(seed, choice):
    def text(choice, seed=seed):
        sampler = Sampler(Sampling(max_tokens=1, seed=seed), choice=choice)
        return [sampler.pick(torch.zeros(1000))[0] for _ in range(8)]

    assert text(choice) == text(choice)
    assert text(choice) != text(choice + 1)
    assert text(choice) != text(choice, seed=seed + 1 if seed < 2**63 - 1 else seed - 1)


def test_without_a_seed_each_text_is_another():
    texts = {tuple(Sampler(Sampling(max_tokens=1)).pick(torch.zeros(1000))[0] for _ in range(4)) for _ in range(20)}
    assert len(texts) == 20


def test_penalties_are_for_tokens_that_were_written():
    close = torch.tensor([1.0, 0.9, 0.0])
    once = Sampler(Sampling(max_tokens=1, temperature=0, presence_penalty=0.2))
    assert [once.pick(close)[0] for _ in range(4)] == [0, 1, 0, 0]  # both were written: the same off both
    each = Sampler(Sampling(max_tokens=1, temperature=0, frequency_penalty=0.2))
    assert [each.pick(close)[0] for _ in range(4)] == [0, 1, 0, 1]


def test_likelihoods_are_those_of_the_model_whatever_is_drawn():
    sampler = Sampler(Sampling(max_tokens=1, temperature=2.0, seed=1, presence_penalty=1.0, likelihoods=2))
    for _ in range(5):
        token, likelihood = sampler.pick(LOGITS)
        assert likelihood.token == token
        assert likelihood.logarithm == pytest.approx(float(LOGITS[token]), abs=1e-6)
        assert [number for number, _ in likelihood.best] == [0, 1]
        assert np.exp([one for _, one in likelihood.best]) == pytest.approx([0.5, 0.3], abs=1e-6)


def test_texts_of_one_step_do_not_share_their_chance():
    plain, drawing = Sampling(max_tokens=1, temperature=0), Sampling(max_tokens=1, seed=5)
    logits = torch.randn(3, 100, generator=torch.Generator().manual_seed(0))
    alone = choose(logits[1:2], [Sampler(drawing)])
    together = choose(logits, [Sampler(plain), Sampler(drawing), Sampler(drawing)])
    assert together[1] == alone[0]
    assert together[0] == (int(logits[0].argmax()), None)
