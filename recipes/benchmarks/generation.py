"""Three ways to write many texts: one after the other, transformers' continuous batching, and cloudai's.

    python recipes/benchmarks/generation.py --rounds 3

Two Llamas with random weights, 16 prompts of 5 to 64 tokens, 32 tokens for each, greedy; every way must write what ``generate``
writes, token for token, or the benchmark fails. At 1, 4 and 16 a client sends the next prompt when one of its last is done.
Told are tokens for each second of processor time, of all threads together, which others on the machine disturb less than the
time on the clock. Rounds go over all ways in turn, and the best of each counts.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections.abc import Callable, Sequence

import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.generation.configuration_utils import ContinuousBatchingConfig, GenerationConfig

from cloudai.serving.generation import Order, Piece, Sampling
from cloudai.serving.generation_batching import BatchingEngine
from cloudai.serving.generation_rows import decoder_for

TOKENS, CONTEXT = 32, 2048
LENGTHS = (5, 17, 40, 8, 23, 64, 12, 30, 9, 11, 33, 21, 50, 7, 15, 28)
TINY = {"vocab_size": 500, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
SMALL = {"vocab_size": 8000, "hidden_size": 512, "num_hidden_layers": 8, "num_attention_heads": 8, "intermediate_size": 1376}
Texts = list[list[int]]


class Silent:
    """Watches an engine, and says nothing."""

    def first(self, seconds: float, prompt_tokens: int) -> None: ...
    def wrote(self, tokens: int) -> None: ...
    def ended(self, finish: str) -> None: ...


def model_of(sizes: dict[str, int]) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(max_position_embeddings=CONTEXT, bos_token_id=1, eos_token_id=None, pad_token_id=0, **sizes)
    return LlamaForCausalLM(config).eval()


def one_by_one(model: LlamaForCausalLM, prompts: Texts) -> Texts:
    options = {"do_sample": False, "max_new_tokens": TOKENS}
    rows = [torch.tensor([prompt]) for prompt in prompts]
    return [model.generate(ids, attention_mask=torch.ones_like(ids), **options)[0, ids.shape[1] :].tolist() for ids in rows]


def by_transformers(model: LlamaForCausalLM, prompts: Texts, at_once: int) -> tuple[float, Texts]:
    """Use the manager of `transformers`, whose cache is given a size: by default it takes 60 % of the memory."""
    options = GenerationConfig(max_new_tokens=TOKENS, do_sample=False, eos_token_id=-1, pad_token_id=0)
    cache = ContinuousBatchingConfig(num_blocks=64, page_size=32, max_batch_tokens=256)
    manager = model.init_continuous_batching(generation_config=options, continuous_batching_config=cache)
    manager.start()
    manager.add_request([5, 6, 7], max_new_tokens=2)
    manager.get_result(timeout=60)
    begun, waiting, running, texts = time.process_time(), list(enumerate(prompts)), {}, {}
    while len(texts) < len(prompts):
        while waiting and len(running) < at_once:
            number, prompt = waiting.pop(0)
            running[manager.add_request(prompt, max_new_tokens=TOKENS)] = number
        result = manager.get_result(timeout=60)
        if result.is_finished():
            texts[running.pop(result.request_id)] = result.generated_tokens
    took = time.process_time() - begun
    manager.stop(block=True)
    manager.destroy()
    return took, [texts[number] for number in range(len(prompts))]


def by_cloudai(model: LlamaForCausalLM, prompts: Texts, at_once: int) -> tuple[float, Texts]:
    return asyncio.run(_by_cloudai(model, prompts, at_once))


async def _by_cloudai(model: LlamaForCausalLM, prompts: Texts, at_once: int) -> tuple[float, Texts]:
    decoder = decoder_for(model, capacity=CONTEXT)
    options = {"decode": _numbers, "ends": frozenset(), "context": CONTEXT, "watcher": Silent()}
    engine = BatchingEngine(decoder, **options)
    await engine.start()
    places = asyncio.Semaphore(at_once)

    async def written(prompt: list[int]) -> list[int]:
        done, pieces = asyncio.Event(), []

        def take(piece: Piece) -> None:
            pieces.append(piece.text)
            if piece.finish:
                done.set()

        async with places:
            engine.write(Order(prompt, Sampling(TOKENS, temperature=0)), take)
            await done.wait()
        return [int(number) for number in "".join(pieces).split()]

    await written([5, 6, 7])
    begun = time.process_time()
    texts = await asyncio.gather(*map(written, prompts))
    took = time.process_time() - begun
    await engine.close()
    return took, list(texts)


def _numbers(tokens: Sequence[int]) -> str:
    return " ".join(map(str, tokens))


def measure(model: LlamaForCausalLM, rounds: int) -> dict[str, float]:
    """Return the tokens a second of processor time of each way."""
    prompts = [torch.randint(3, 490, (length,)).tolist() for length in LENGTHS]
    expected = one_by_one(model, prompts)
    total, best = len(prompts) * TOKENS, {}
    ways: dict[str, Callable[[], tuple[float, Texts]]] = {"generate, one after the other": lambda: _timed(model, prompts)}
    for at_once in (1, 4, 16):
        ways[f"transformers' manager, {at_once} at once"] = lambda n=at_once: by_transformers(model, prompts, n)
        ways[f"cloudai, {at_once} at once"] = lambda n=at_once: by_cloudai(model, prompts, n)
    for _ in range(rounds):
        for name, way in ways.items():
            took, texts = way()
            if texts != expected:
                raise SystemExit(f"{name} wrote other tokens than generate")
            best[name] = max(best.get(name, 0.0), total / took)
    return best


def _timed(model: LlamaForCausalLM, prompts: Texts) -> tuple[float, Texts]:
    begun = time.process_time()
    texts = one_by_one(model, prompts)
    return time.process_time() - begun, texts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    figures = {}
    for name, sizes in (("tiny", TINY), ("small", SMALL)):
        model = model_of(sizes)
        millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
        figures[name] = {"million parameters": round(millions, 2), "tokens/cpu s": measure(model, asked.rounds)}
        print(f"\n{name}, {millions:.1f} million parameters")
        for way, speed in figures[name]["tokens/cpu s"].items():
            print(f"{way:36} {speed:8.0f} tokens/s of processor time")
    print(json.dumps({"benchmark": "generation", "figures": figures}))


if __name__ == "__main__":
    main()
