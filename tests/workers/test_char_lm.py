"""The proxy's task: which windows of the text are trained on, which are scored, and how."""

# B batch, T tokens, V vocabulary

import math
import string
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from itertools import islice

import pytest
import torch
from torch import Tensor, nn

from einlayers.errors import FieldError
from search.proxies.char_lm import CharLM, FileCorpus
from search.trial import TrialSpec
from tests.contracts.proxy import ProxyContract
from tests.workers.specs import MICRO, micro_trial
from workers.proxies.char_lm import EVALUATION_TOKENS, next_token_loss
from workers.proxies.registry import proxy_for
from workers.task import Batch, Task
from workers.workspace import Workspace

ALPHABET = "\n" + "".join(sorted(string.printable[:95]))
"""The 96 characters in the order of their codes, newline first."""


class Listener(nn.Module):
    """Knows nothing, and remembers every text that it was asked about."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[str] = []

    def forward(self, tokens_BT: Tensor) -> Tensor:
        self.heard += texts(tokens_BT)
        return torch.zeros(*tokens_BT.shape, 96)


class Opinion(nn.Module):
    """Has fixed logits for what follows each character, whatever came before."""

    def __init__(self) -> None:
        super().__init__()
        self.logits_VV = torch.randn(96, 96, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def forward(self, tokens_BT: Tensor) -> Tensor:
        return self.logits_VV[tokens_BT]


def texts(tokens_BT: Tensor) -> list[str]:
    return ["".join(ALPHABET[token] for token in row) for row in tokens_BT.tolist()]


def write(workspace: Workspace, text: str) -> FileCorpus:
    assert workspace.corpora_dir
    (workspace.corpora_dir / "written.txt").write_text(text)
    return FileCorpus(path="written.txt")


def task_of(spec: TrialSpec, workspace: Workspace) -> Task:
    return proxy_for(spec.proxy).task(spec.seed, workspace, torch.device("cpu"))


def trained_on(task: Task, num_batches: int) -> Iterator[str]:
    """The windows of the first batches, with the character that follows each."""
    for inputs_BT, targets_BT in islice(task.batches, num_batches):
        assert torch.equal(inputs_BT[:, 1:], targets_BT[:, :-1])
        yield from texts(torch.cat([inputs_BT, targets_BT[:, -1:]], dim=1))


@pytest.fixture
def text(workspace: Workspace) -> str:
    """What lies in ``corpus.txt``."""
    assert workspace.corpora_dir
    return (workspace.corpora_dir / "corpus.txt").read_text()


class TestCharLM(ProxyContract):
    @pytest.fixture
    def settings(self) -> CharLM:
        return replace(MICRO, depth=2)


class TestTraining:
    def test_reads_windows_of_the_training_text(self, workspace: Workspace, text: str) -> None:
        training_text = text[: len(text) - len(text) // 20]
        windows = list(trained_on(task_of(micro_trial(), workspace), 50))
        assert {len(window) for window in windows} == {MICRO.context + 1}
        assert all(window in training_text for window in windows)
        assert len(set(windows)) > 150

    def test_fills_batches_of_the_size_asked_for(self, workspace: Workspace) -> None:
        inputs_BT, targets_BT = next(task_of(micro_trial(batch_size=7, context=11), workspace).batches)
        assert inputs_BT.shape == targets_BT.shape == (7, 11)

    def test_reaches_every_window_from_the_first_character_to_the_last(self, workspace: Workspace) -> None:
        # 57 different characters for training, and three that are held out.
        corpus = write(workspace, ALPHABET[1:61])
        windows = set(trained_on(task_of(micro_trial(corpus=corpus, context=2), workspace), 200))
        assert windows == {ALPHABET[start : start + 3] for start in range(1, 56)}

    def test_follows_from_the_seed_alone(self, workspace: Workspace) -> None:
        first, again, other = (
            list(trained_on(task_of(micro_trial(name, seed=seed), workspace), 5))
            for name, seed in (("dense", 0), ("btt", 0), ("dense", 1))
        )
        assert first == again
        assert not set(first) & set(other)


class TestHeldOutLoss:
    @pytest.mark.parametrize("context", [16, 48, 64])
    def test_reads_evenly_spread_windows_of_the_held_out_text(self, workspace: Workspace, context: int) -> None:
        held_out = "".join(ALPHABET[1 + (i * i) % 89] + ALPHABET[1 + i % 95] for i in range(5000))
        corpus = write(workspace, "x" * 19 * len(held_out) + held_out)
        listener = Listener()
        task_of(micro_trial(corpus=corpus, context=context), workspace).held_out_loss(listener)
        num_windows = EVALUATION_TOKENS // context
        starts = [(len(held_out) - context - 1) * i // (num_windows - 1) for i in range(num_windows)]
        assert listener.heard == [held_out[start : start + context] for start in starts]

    def test_reads_the_same_windows_for_every_structure_and_seed(self, workspace: Workspace) -> None:
        listeners = [Listener(), Listener()]
        for listener, spec in zip(listeners, (micro_trial("dense"), micro_trial("btt", seed=1)), strict=True):
            task_of(spec, workspace).held_out_loss(listener)
        assert listeners[0].heard == listeners[1].heard

    def test_is_the_logarithm_of_96_for_who_knows_nothing(self, workspace: Workspace) -> None:
        task = task_of(micro_trial(), workspace)
        assert task.held_out_loss(Listener()) == pytest.approx(math.log(96), rel=1e-6)
        assert task.uninformed_loss == pytest.approx(math.log(96), rel=1e-12)

    @pytest.mark.parametrize("context", [16, 48])
    def test_weighs_every_token_alike(self, workspace: Workspace, text: str, context: int) -> None:
        # At 48, the last batch of windows is one window only.
        assert (EVALUATION_TOKENS // 48) % (4096 // 48) == 1
        loss = task_of(micro_trial(context=context), workspace).held_out_loss(Opinion())
        held_out, num_windows = text[len(text) - len(text) // 20 :], EVALUATION_TOKENS // context
        starts = [(len(held_out) - context - 1) * i // (num_windows - 1) for i in range(num_windows)]
        surprises = [surprise(held_out[i], held_out[i + 1]) for start in starts for i in range(start, start + context)]
        assert loss == pytest.approx(math.fsum(surprises) / len(surprises), rel=1e-9)

    def test_is_that_of_a_text_with_one_window_where_that_is_all_there_is(self, workspace: Workspace) -> None:
        corpus = write(workspace, "ab" * 170)
        listener = Listener()
        task_of(micro_trial(corpus=corpus, context=16), workspace).held_out_loss(listener)
        assert set(listener.heard) == {("ab" * 9)[1:17]}


class TestNextTokenLoss:
    def test_is_the_mean_surprise_at_what_came_next(self) -> None:
        inputs_BT, targets_BT = torch.tensor([[3, 5], [7, 9]]), torch.tensor([[5, 6], [9, 95]])
        pairs = zip(inputs_BT.flatten().tolist(), targets_BT.flatten().tolist(), strict=True)
        felt = [surprise(ALPHABET[now], ALPHABET[after]) for now, after in pairs]
        batch: Batch = (inputs_BT, targets_BT)
        assert next_token_loss(Opinion(), batch).item() == pytest.approx(sum(felt) / 4, rel=1e-12)


class TestTask:
    @pytest.mark.parametrize("length", [0, 16, 339])
    def test_needs_a_text_that_is_long_enough(self, workspace: Workspace, length: int) -> None:
        with pytest.raises(FieldError, match=r"^corpus: expected at least 17 (training|held-out) characters"):
            task_of(micro_trial(corpus=write(workspace, "x" * length)), workspace)

    def test_is_content_with_a_text_that_is_just_long_enough(self, workspace: Workspace) -> None:
        assert next(task_of(micro_trial(corpus=write(workspace, "x" * 340)), workspace).batches)

    def test_is_not_known_for_settings_of_another_kind(self) -> None:
        with pytest.raises(KeyError):
            proxy_for(object())  # type: ignore[arg-type]  # the point of the test


@cache
def surprises() -> list[list[float]]:
    """Minus the logarithms of the probabilities that ``Opinion`` gives what follows each character."""
    rows = Opinion().logits_VV.tolist()
    return [[math.log(math.fsum(map(math.exp, row))) - logit for logit in row] for row in rows]


def surprise(now: str, after: str) -> float:
    return surprises()[ALPHABET.index(now)][ALPHABET.index(after)]
