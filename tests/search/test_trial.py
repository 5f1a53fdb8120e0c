import math
import pickle

import pytest

from einlayers.errors import FieldError
from einlayers.theta import NAMED
from search.proxies.char_lm import CharLM
from search.trial import Outcome, OutcomeKind, Report, TrialSpec

CURVE = (
    Report(step=1, examples=64, train_flops=1e6, loss=4.5),
    Report(step=2, examples=128, train_flops=2e6, loss=4.0),
)


class TestTrialSpec:
    @pytest.mark.parametrize(
        ("field", "value"),
        [("width", 0), ("width", 2**20 + 1), ("width", 32.0), ("seed", -1), ("seed", 2**63), ("seed", True)],
    )
    def test_refuses_what_cannot_be_trained_and_names_it(self, field: str, value: object) -> None:
        numbers: dict[str, object] = {"width": 32, "seed": 0, field: value}
        with pytest.raises(FieldError, match=f"^{field}: expected a whole number"):
            TrialSpec(theta=NAMED["btt"], proxy=CharLM(base_lr=5e-3), **numbers)  # type: ignore[arg-type]  # the point of the test

    def test_needs_a_learning_rate(self) -> None:
        with pytest.raises(FieldError, match="proxy: expected a learning rate that was calibrated"):
            TrialSpec(theta=NAMED["btt"], proxy=CharLM(), width=32, seed=0)

    def test_crosses_a_process_border_whole(self) -> None:
        spec = TrialSpec(theta=NAMED["btt"], proxy=CharLM(base_lr=5e-3), width=32, seed=2**63 - 1)
        assert pickle.loads(pickle.dumps(spec)) == spec


class TestOutcome:
    def test_completes_with_a_loss_and_without_a_reason(self) -> None:
        outcome = Outcome.completed(loss=2.5, curve=CURVE, seconds=1.5)
        assert (outcome.kind, outcome.loss, outcome.reason) == (OutcomeKind.COMPLETED, 2.5, None)
        assert (outcome.curve, outcome.seconds) == (CURVE, 1.5)

    @pytest.mark.parametrize(
        ("outcome", "kind", "reason"),
        [
            (Outcome.infeasible("diverged", curve=CURVE), OutcomeKind.INFEASIBLE, "diverged"),
            (Outcome.failed("Traceback"), OutcomeKind.FAILED, "Traceback"),
            (Outcome.cancelled(curve=CURVE), OutcomeKind.CANCELLED, "stopped on request"),
            (Outcome.out_of_memory("no memory", curve=CURVE), OutcomeKind.OUT_OF_MEMORY, "no memory"),
            (Outcome.checkpointed(curve=CURVE), OutcomeKind.CHECKPOINTED, "wrote a checkpoint on request"),
        ],
    )
    def test_ends_otherwise_with_a_reason_and_without_a_loss(
        self, outcome: Outcome, kind: OutcomeKind, reason: str
    ) -> None:
        assert (outcome.kind, outcome.loss, outcome.reason) == (kind, None, reason)

    @pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
    def test_does_not_complete_with_a_loss_that_is_no_number(self, loss: float) -> None:
        with pytest.raises(FieldError, match=r"^loss: expected a finite loss if and only if the run completed"):
            Outcome.completed(loss=loss)

    @pytest.mark.parametrize("kind", [kind for kind in OutcomeKind if kind is not OutcomeKind.COMPLETED])
    def test_has_no_loss_where_it_did_not_complete(self, kind: OutcomeKind) -> None:
        with pytest.raises(FieldError, match=r"^loss: "):
            Outcome(kind=kind, loss=2.5, reason="why")

    @pytest.mark.parametrize("reason", [None, ""])
    def test_always_says_why_it_did_not_complete(self, reason: str | None) -> None:
        with pytest.raises(FieldError, match=r"^reason: expected a reason if and only if"):
            Outcome(kind=OutcomeKind.FAILED, reason=reason)

    def test_gives_no_excuse_where_it_completed(self) -> None:
        with pytest.raises(FieldError, match=r"^reason: "):
            Outcome(kind=OutcomeKind.COMPLETED, loss=2.5, reason="why")

    def test_needs_a_learning_rate(self) -> None:
        with pytest.raises(FieldError, match="proxy: expected a learning rate that was calibrated"):
            TrialSpec(theta=NAMED["btt"], proxy=CharLM(), width=32, seed=0)

    def test_crosses_a_process_border_whole(self) -> None:
        outcome = Outcome.completed(loss=2.5, curve=CURVE)
        assert pickle.loads(pickle.dumps(outcome)) == outcome
