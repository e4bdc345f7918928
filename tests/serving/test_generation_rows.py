from __future__ import annotations

import pytest
import torch
from transformers import MistralConfig, MistralForCausalLM

from cloudai.serving.generation_rows import RowDecoder, TurnDecoder, decoder_for
from tests.serving import writers

PROMPTS = [[70, 80, 90, 33, 44], [100], [12, 200, 7]]


def mistral(window):
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}
    config = MistralConfig(vocab_size=257, intermediate_size=16, sliding_window=window, max_position_embeddings=64, **sizes)
    return writers.shaken(MistralForCausalLM(config))


def generated(model, prompt, count):
    ids = torch.tensor([prompt])
    options = {"do_sample": False, "max_new_tokens": count, "pad_token_id": 0, "eos_token_id": None}
    return model.generate(ids, attention_mask=torch.ones_like(ids), **options)[0, len(prompt) :].tolist()


def written(decoder, prompts, count):
    """Write greedily: all prompts are read in one step, and each text leaves when it has its own number of tokens."""
    texts = {number: [] for number in range(len(prompts))}
    there = list(texts)
    for _ in prompts:
        decoder.add()
    logits = decoder.step(there, prompts, [0] * len(prompts))
    while there:
        for row, number in enumerate(there):
            texts[number].append(int(logits[row].argmax()))
        for row in reversed(range(len(there))):
            if len(texts[there[row]]) == count - there[row]:
                decoder.remove(row)
                last = there.pop()
                if row < len(there):
                    there[row] = last
        if there:
            starts = [len(prompts[number]) + len(texts[number]) - 1 for number in there]
            logits = decoder.step(list(range(len(there))), [[texts[number][-1]] for number in there], starts)
    return texts


@pytest.mark.parametrize("model", [writers.llama, writers.gpt2, lambda: mistral(None)], ids=["llama", "gpt2", "mistral"])
def test_texts_in_rows_are_those_that_generate_writes(model):
    model = model()
    decoder = decoder_for(model, capacity=64)
    assert isinstance(decoder, RowDecoder)
    texts = written(decoder, PROMPTS, 24)
    assert texts == {number: generated(model, prompt, 24 - number) for number, prompt in enumerate(PROMPTS)}
    again = written(decoder, PROMPTS[::-1], 20)
    assert again == {number: generated(model, prompt, 20 - number) for number, prompt in enumerate(PROMPTS[::-1])}


def test_a_prompt_that_is_read_in_parts_beside_others_gives_the_same():
    model = writers.llama()
    decoder = decoder_for(model, capacity=64)
    decoder.add()
    decoder.add()
    whole = model(input_ids=torch.tensor([PROMPTS[0]])).logits[0, -1]
    decoder.step([0, 1], [PROMPTS[0][:2], PROMPTS[2]], [0, 0])
    logits = decoder.step([1, 0], [[5], PROMPTS[0][2:]], [3, 2])  # not one after the other: they are gathered
    assert torch.allclose(logits[1], whole, atol=1e-4)


def test_models_whose_layers_look_back_a_little_way_only_take_turns():
    model = mistral(4)
    decoder = decoder_for(model, capacity=64)
    assert isinstance(decoder, TurnDecoder)
    assert written(decoder, PROMPTS, 16) == {n: generated(model, prompt, 16 - n) for n, prompt in enumerate(PROMPTS)}
    assert isinstance(decoder_for(mistral(64), capacity=64), RowDecoder)  # as far as texts may go, they look at all


def test_models_that_answer_differently_in_rows_take_turns():
    model = writers.llama()
    forward = model.forward

    def shifted(input_ids=None, position_ids=None, past_key_values=None, logits_to_keep=0, **options):
        given = {"position_ids": position_ids, "past_key_values": past_key_values, "logits_to_keep": logits_to_keep}
        answer = forward(input_ids=input_ids, **given, **options)
        if len(input_ids) > 1:
            answer.logits = answer.logits + torch.arange(len(input_ids)).view(-1, 1, 1) * answer.logits.flip(-1)
        return answer

    model.forward = shifted
    assert isinstance(decoder_for(model, capacity=64), TurnDecoder)


def test_models_of_half_precision_go_in_rows_too():
    assert isinstance(decoder_for(writers.llama().bfloat16(), capacity=64), RowDecoder)


def test_memory_is_given_back_with_the_last_text():
    decoder = decoder_for(writers.llama(), capacity=64)
    for _ in range(3):
        decoder.add()
    decoder.step([0, 1, 2], PROMPTS, [0, 0, 0])
    layer = decoder._cache.layers[0]
    assert layer.keys.numel() > 0
    assert decoder.token_bytes == 2 * 2 * 2 * 8 * 4  # keys and values, layers, heads, numbers, bytes of each
    for _ in range(3):
        decoder.remove(0)
    assert layer.keys.numel() == 0
