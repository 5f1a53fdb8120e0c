"""The loop on models of one number, whose every step is known by hand."""

import math
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workers.task import Batch, Task
from workers.training import Diverged, Training, curve_steps, train

LR = 0.01


class Interrupted(Exception):
    """Ends a run between two steps."""


class Point(nn.Module):
    """One number, in float64."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros((), dtype=torch.float64))


def position(model: nn.Module) -> float:
    assert isinstance(model, Point)
    return model.w.item()


def slope(model: nn.Module, batch: Batch) -> Tensor:
    """A loss whose gradient is what the batch holds."""
    assert isinstance(model, Point)
    return model.w * batch[0]


def downhill() -> Iterator[float]:
    while True:
        yield 1.0


def erratic() -> Iterator[float]:
    generator = torch.Generator().manual_seed(0)
    while True:
        yield torch.randn((), generator=generator).item()


@dataclass
class Run:
    """One call of ``train`` on a ``Point``, and everything that it did on the way."""

    num_steps: int
    slopes: Iterator[float] = field(default_factory=downhill)
    loss: Callable[[nn.Module, Batch], Tensor] = slope
    score: Callable[[nn.Module], float] = position
    before_step: Callable[[Training], None] = lambda training: None
    uninformed_loss: float = math.inf
    model: Point = field(default_factory=Point)
    positions: list[float] = field(default_factory=list)
    averages: dict[int, float] = field(default_factory=dict)
    curve: list[tuple[int, float]] = field(default_factory=list)

    def start(self) -> float:
        """Train; ``positions[t]`` is the position after t steps, ``averages[t]`` that of the averaged weights."""
        groups: list[dict[str, object]] = [{"params": [self.model.w], "lr": LR}]
        task = Task(
            batches=self._batches(),
            generator=np.random.default_rng(),
            loss=self.loss,
            held_out_loss=self._score,
            uninformed_loss=self.uninformed_loss,
        )
        return train(
            Training(self.model, groups, task, num_steps=self.num_steps, warmup_steps=50),
            record=lambda step, loss: self.curve.append((step, loss)),
            before_step=self.before_step,
        )

    def _batches(self) -> Iterator[Batch]:
        for step in self.slopes:
            self.positions.append(position(self.model))
            yield torch.tensor(step, dtype=torch.float64), torch.zeros(())

    def _score(self, averaged: nn.Module) -> float:
        self.averages[len(self.positions)] = position(averaged)
        self.after_the_last_step = position(self.model)
        return self.score(averaged)


class TestLearningRate:
    """Where the gradient is 1 for ever, a step of Adam is exactly as long as the learning rate."""

    @pytest.mark.parametrize(("num_steps", "warmup"), [(2000, 50), (500, 50), (200, 20), (40, 4), (9, 1), (1, 1)])
    def test_warms_up_linearly_and_stays(self, num_steps: int, warmup: int) -> None:
        run = Run(num_steps)
        run.start()
        steps = [before - after for before, after in pairwise([*run.positions, run.after_the_last_step])]
        assert steps == pytest.approx([LR * min(1, step / warmup) for step in range(1, num_steps + 1)], rel=1e-6)


class TestSteps:
    def test_are_as_many_as_asked_for_and_take_no_batch_more(self) -> None:
        run = Run(37)
        run.start()
        assert len(run.positions) == 37

    def test_are_adams(self) -> None:
        run = Run(120, slopes=erratic())
        run.start()
        assert [*run.positions, run.after_the_last_step] == pytest.approx(adam(120), rel=1e-9, abs=1e-12)


class TestAveragedWeights:
    @pytest.mark.parametrize("num_steps", [1, 2, 3, 50, 400])
    def test_are_what_a_plain_loop_averages(self, num_steps: int) -> None:
        run = Run(num_steps, slopes=erratic())
        run.start()
        visited = [*run.positions[1:], run.after_the_last_step]
        average, expected = math.nan, {}
        for t, w in enumerate(visited, start=1):
            average = w if t == 1 else average + 11 / (t + 10) * (w - average)
            expected[t] = average
        assert run.averages == pytest.approx({t: expected[t] for t in run.averages}, rel=1e-9, abs=1e-12)

    def test_lie_about_a_tenth_of_the_way_behind(self) -> None:
        run = Run(1000)
        run.start()
        travelled = -run.after_the_last_step
        assert 1 + run.averages[1000] / travelled == pytest.approx(0.1, abs=0.03)

    def test_are_what_is_scored(self) -> None:
        run = Run(64)
        assert run.start() == run.averages[64]
        assert run.curve == list(run.averages.items())

    def test_are_scored_without_gradients(self) -> None:
        enabled: list[bool] = []

        def score(model: nn.Module) -> float:
            enabled.append(torch.is_grad_enabled())
            return 0.0

        Run(4, score=score).start()
        assert enabled
        assert not any(enabled)


class TestCurve:
    def test_lie_at_half_powers_of_2_of_the_budget(self) -> None:
        assert curve_steps(160) == {10, 14, 20, 28, 40, 57, 80, 113, 160}

    @pytest.mark.parametrize(
        ("num_steps", "steps"), [(1, {1}), (2, {1, 2}), (3, {1, 2, 3}), (16, {1, 2, 3, 4, 6, 8, 11, 16})]
    )
    def test_fall_together_where_there_are_few_steps(self, num_steps: int, steps: set[int]) -> None:
        assert curve_steps(num_steps) == steps

    @pytest.mark.parametrize("num_steps", [1, 2, 7, 160])
    def test_are_told_in_order_and_end_with_the_loss(self, num_steps: int) -> None:
        run = Run(num_steps)
        loss = run.start()
        assert [step for step, _ in run.curve] == sorted(curve_steps(num_steps))
        assert run.curve[-1] == (num_steps, loss)


class TestDivergence:
    @pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
    def test_is_a_training_loss_that_is_no_number(self, loss: float) -> None:
        run = Run(1000, uninformed_loss=4.56)
        run.loss = lambda model, batch: slope(model, batch) + (loss if len(run.positions) >= 30 else 0)
        with pytest.raises(Diverged, match=rf"^the training loss is {abs(loss)} at step 50 of 1000; "):
            run.start()

    def test_is_a_training_loss_that_exploded_though_it_came_back(self) -> None:
        run = Run(1000, uninformed_loss=4.56)
        run.loss = lambda model, batch: slope(model, batch) + (45.7 if len(run.positions) == 30 else 0)
        with pytest.raises(Diverged, match=r"^the training loss is 4\d\.\d+ at step 50 of 1000; .* nothing has 4\.56$"):
            run.start()

    def test_is_a_step_that_is_no_number_at_the_very_end(self) -> None:
        run = Run(3, slopes=iter([1.0, 1.0, math.nan]), uninformed_loss=4.56)
        with pytest.raises(Diverged, match=r"^the training loss is nan at step 3 of 3; .* knows nothing has 4\.56$"):
            run.start()

    def test_is_a_held_out_loss_of_twice_what_knowing_nothing_costs(self) -> None:
        run = Run(160, score=lambda model: 9.13 if len(run.positions) > 20 else 9.12, uninformed_loss=4.56)
        with pytest.raises(Diverged, match=r"^the held-out loss is 9\.13 at step 28 of 160; "):
            run.start()
        assert run.curve == [(10, 9.12), (14, 9.12), (20, 9.12)]


class TestInterruption:
    @pytest.mark.parametrize("num_steps", [0, 1, 23])
    def test_happens_before_the_next_batch_is_drawn(self, num_steps: int) -> None:
        def interrupt(training: Training) -> None:
            if training.step == num_steps:
                raise Interrupted

        run = Run(100, before_step=interrupt)
        with pytest.raises(Interrupted):
            run.start()
        assert len(run.positions) == num_steps
        assert [step for step, _ in run.curve] == sorted(s for s in curve_steps(100) if s <= num_steps)


class TestContinuation:
    @pytest.mark.parametrize("num_steps", [0, 1, 30, 50, 99])
    def test_ends_as_if_it_had_never_been_interrupted(self, num_steps: int) -> None:
        def save(training: Training) -> None:
            if training.step == num_steps:
                saved.append(deepcopy(training.state_dict()))

        saved: list[dict[str, object]] = []
        whole, curve = noisy_training(), []
        loss = train(whole, record=lambda *point: curve.append(point), before_step=save)
        rest, end = noisy_training(), []
        rest.load_state_dict(saved[0])
        assert train(rest, record=lambda *point: end.append(point), before_step=lambda _: None) == loss
        assert end == [point for point in curve if point[0] > num_steps]
        assert torch.equal(rest.worst, whole.worst)
        assert repr(rest.state_dict()) == repr(whole.state_dict())


class TestTask:
    def test_is_learnt_and_gives_the_same_loss_to_the_last_bit(self) -> None:
        losses = [learn_a_line() for _ in range(2)]
        assert losses[0] == losses[1]
        assert losses[0] < 1e-3


def adam(num_steps: int) -> list[float]:
    """The path by the formulas of 1412.6980, at the rates of the warm-up."""
    w, m, v, path, gradients = 0.0, 0.0, 0.0, [0.0], erratic()
    for t in range(1, num_steps + 1):
        gradient = next(gradients)
        m, v = 0.9 * m + 0.1 * gradient, 0.95 * v + 0.05 * gradient**2
        w -= LR * min(1, t / 12) * (m / (1 - 0.9**t)) / (math.sqrt(v / (1 - 0.95**t)) + 1e-8)
        path.append(w)
    return path


def learn_a_line() -> float:
    """Learn y = 3 x1 - 2 x2 from 400 batches."""
    torch.manual_seed(0)
    model = nn.Linear(2, 1, bias=False)
    generator = torch.Generator().manual_seed(1)

    def draw() -> Batch:
        inputs_B2 = torch.randn(16, 2, generator=generator)
        return inputs_B2, inputs_B2 @ torch.tensor([[3.0], [-2.0]])

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        return F.mse_loss(model(batch[0]), batch[1])

    held_out = draw()
    task = Task(
        batches=iter(draw, None),
        generator=np.random.default_rng(),
        loss=loss,
        held_out_loss=lambda model: loss(model, held_out).item(),
        uninformed_loss=13.0,
    )
    groups: list[dict[str, object]] = [{"params": [model.weight], "lr": 0.05}]
    training = Training(model, groups, task, num_steps=400, warmup_steps=50)
    return train(training, record=lambda *_: None, before_step=lambda _: None)


def noisy_training() -> Training:
    """A hundred steps on random batches, with a dropout, so that both generators count."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 8), nn.Dropout(0.5), nn.Linear(8, 1))
    generator = np.random.default_rng(1)

    def draw() -> Batch:
        inputs_B2 = torch.from_numpy(generator.standard_normal((16, 2), dtype=np.float32))
        return inputs_B2, inputs_B2.sum(dim=1, keepdim=True)

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        return F.mse_loss(model(batch[0]), batch[1])

    held_out = draw()
    task = Task(
        batches=iter(draw, None),
        generator=generator,
        loss=loss,
        held_out_loss=lambda model: loss(model.eval(), held_out).item(),
        uninformed_loss=2.0,
    )
    groups: list[dict[str, object]] = [{"params": list(model.parameters()), "lr": 0.01}]
    return Training(model, groups, task, num_steps=100, warmup_steps=50)
