"""Rows of questions with their contexts: a long context is several windows of one row."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from cloudai.artifacts.text_readers import Reader, Span, Window
from cloudai.training.tasks.measures import exact_match, token_f1
from cloudai.training.tasks.rows import TokenRows, placed, summed_loss

__all__ = ["AnswerRows"]


class AnswerRows(TokenRows):
    """Questions, each with its context and answers.

    Parameters
    ----------
    data : mapping of str to array
        Questions as ``inputs``, ``contexts``, how many ``answers`` each has, these as ``targets``, and where each of them
        ``starts`` in the context. The first one is learned, all of them count when it is measured.
    """

    at_once = 32

    def __init__(self, model: Reader, data: Mapping[str, np.ndarray]) -> None:
        self._model = model
        self._contexts = data["contexts"].tolist()
        ends = np.cumsum(data["answers"])[:-1]
        self._answers = [part.tolist() for part in np.split(data["targets"], ends)]
        firsts = [int(part[0]) if len(part) else -1 for part in np.split(data["starts"], ends)]
        self._windows: list[list[Window]] = [[] for _ in self._contexts]
        for window in model.windows(data["inputs"].tolist(), self._contexts):
            self._windows[window.row].append(window)
        self._spans = [
            [self._span(window, start, answers) for window in windows]
            for windows, start, answers in zip(self._windows, firsts, self._answers, strict=True)
        ]
        super().__init__([max(len(window.ids) for window in windows) for windows in self._windows])

    def weight(self, rows: torch.Tensor) -> float:
        """Return how many windows there are."""
        return float(sum(len(self._windows[row]) for row in rows.tolist()))

    def loss(self, module: torch.nn.Module, rows: torch.Tensor) -> torch.Tensor:
        """Return the summed loss of all windows: the mean of that of the first and that of the last token."""
        return self._loss(self._logits(module, rows), rows)

    def measure(self, module: torch.nn.Module, rows: torch.Tensor) -> dict[str, float]:
        """Return the mean loss of windows, and exact match and F1 of the answers, as SQuAD measures them."""
        loss, exact, overlap = 0.0, 0.0, 0.0
        for part in self.parts(rows):
            logits = self._logits(module, part)
            loss += float(self._loss(logits, part))
            for row, answer in zip(part.tolist(), self._found(logits.cpu().numpy(), part), strict=True):
                exact += exact_match(answer, self._answers[row])
                overlap += token_f1(answer, self._answers[row])
        return {
            "val_loss": loss / self.weight(rows),
            "val_exact_match": exact / len(rows),
            "val_f1": overlap / len(rows),
        }

    def _span(self, window: Window, start: int, answers: list[str]) -> tuple[int, int]:
        """Return the first and the last token of an answer; where the window lacks it, the token that says so twice."""
        nowhere = self._model.nowhere(window)
        if start < 0:
            return nowhere, nowhere
        begins, ends = window.offsets.T
        first = np.flatnonzero((begins <= start) & (ends > start))
        last = np.flatnonzero((begins < start + len(answers[0])) & (ends >= start + len(answers[0])))
        return (int(first[0]), int(last[-1])) if len(first) and len(last) else (nowhere, nowhere)

    def _of(self, rows: torch.Tensor) -> list[Window]:
        return [window for row in rows.tolist() for window in self._windows[row]]

    def _logits(self, module: torch.nn.Module, rows: torch.Tensor) -> torch.Tensor:
        ids, mask, types = placed(module, *self._model.tensors(self._of(rows)))
        logits: torch.Tensor = module(ids, mask, types)
        return logits.float().masked_fill(mask.unsqueeze(-1) == 0, torch.finfo(torch.float32).min)

    def _loss(self, logits: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        spans = torch.tensor([span for row in rows.tolist() for span in self._spans[row]])
        return (summed_loss(logits[..., 0], spans[:, 0]) + summed_loss(logits[..., 1], spans[:, 1])) / 2

    def _found(self, logits: np.ndarray, rows: torch.Tensor) -> list[str]:
        """Return the best answer of each row, over its windows."""
        best = {row: Span(0, 0, -1.0) for row in rows.tolist()}
        for window, scores in zip(self._of(rows), logits, strict=True):
            best[window.row] = max(best[window.row], self._model.span(window, scores), key=lambda span: span.score)
        return [self._contexts[row][span.start : span.end] for row, span in best.items()]
