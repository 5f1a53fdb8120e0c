import math
import pickle
from dataclasses import FrozenInstanceError, fields

import pytest
from hypothesis import example, given

from einlayers.errors import FieldError
from einlayers.theta import NAMED, SUM_TOLERANCE, Theta
from tests import golden, strategies

BTT = (0.5, 0, 0.5, 0, 0.5, 0.5, 0.25)
NAMES = tuple(field.name for field in fields(Theta))
EXACT = 1e-12
PRINTED = 5e-4 * (1 + 1e-9)
"""Three significant digits of a number below 1."""


class TestConstruction:
    def test_takes_seven_exponents_in_the_order_of_the_papers(self) -> None:
        theta = Theta(alpha=0.5, beta=0.1, gamma=0.4, delta=0.2, epsilon=0.3, phi=0.5, rho=0.25)
        assert theta.exponents == (0.5, 0.1, 0.4, 0.2, 0.3, 0.5, 0.25)
        assert Theta.of(theta.exponents) == theta

    @pytest.mark.parametrize("index", range(7))
    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -0.1, 1.1, -1, 2, True, None, "0.5", 0.5j])
    def test_refuses_what_is_no_exponent_and_names_it(self, index: int, value: object) -> None:
        exponents: list[object] = list(BTT)
        exponents[index] = value
        with pytest.raises(FieldError) as caught:
            Theta.of(exponents)  # type: ignore[arg-type]  # the point of the test
        assert caught.value.field == NAMES[index]
        assert caught.value.expected == "a finite exponent between 0 and 1"
        assert repr(caught.value.got) == repr(value)

    @pytest.mark.parametrize(
        ("exponents", "group", "total"),
        [
            ((0.5, 0.9, 0, 0, 0.5, 0.5, 0), "alpha + beta + gamma", 1.4),
            ((0, 0, 0, 0, 0.5, 0.5, 0), "alpha + beta + gamma", 0),
            ((0.5, 0.5, 0, 0.2, 0.2, 0.2, 0), "delta + epsilon + phi", 0.6),
            ((0.5, 0.5, 0, 1, 1, 1, 0), "delta + epsilon + phi", 3),
        ],
    )
    def test_refuses_a_group_that_does_not_sum_to_one(
        self, exponents: tuple[float, ...], group: str, total: float
    ) -> None:
        with pytest.raises(FieldError) as caught:
            Theta.of(exponents)
        assert caught.value.field == group
        assert caught.value.got == pytest.approx(total)

    def test_accepts_the_papers_third_and_nothing_much_worse(self) -> None:
        Theta.of((0.33, 0.33, 0.33, 0.34, 0.33, 0.34, 0))
        with pytest.raises(FieldError, match="sum to 1"):
            Theta.of((0.33, 0.33, 0.34 - 2 * SUM_TOLERANCE, 0, 0, 1, 0))

    def test_has_one_zero(self) -> None:
        theta = Theta.of((-0.0, 0.0, 1, 0, -0.0, 1, -0.0))
        assert [math.copysign(1, exponent) for exponent in theta.exponents] == [1] * 7

    def test_turns_whole_numbers_into_floats(self) -> None:
        assert all(type(exponent) is float for exponent in Theta.of((1, 0, 0, 0, 1, 0, 0)).exponents)

    def test_cannot_be_changed(self) -> None:
        with pytest.raises(FrozenInstanceError):
            NAMED["btt"].rho = 0.5  # type: ignore[misc]  # the point of the test

    @given(theta=strategies.thetas())
    def test_pickles_and_hashes_by_value(self, theta: Theta) -> None:
        twin = pickle.loads(pickle.dumps(theta))
        assert twin.exponents == theta.exponents
        assert twin == theta
        assert hash(twin) == hash(theta)


class TestEquality:
    @given(theta=strategies.thetas())
    def test_holds_for_a_theta_and_its_swap(self, theta: Theta) -> None:
        assert theta == theta.swapped() == theta.canonical()
        assert len({theta, theta.swapped(), theta.canonical()}) == 1

    def test_holds_for_every_form_of_dense(self) -> None:
        forms = ["(0|0|1|0|0|1|0)", "(1|0|0|1|0|0|0)", "(0|1|0|0|1|0|0)", "(1/2|0|1/2|1/4|0|3/4|1/5)"]
        assert len({Theta.parse(form) for form in forms}) == 1

    def test_does_not_see_float_noise(self) -> None:
        assert Theta.parse("(1/3|0|2/3|0|2/3|1/3|0.3)") == Theta.of((1 - 2 / 3, 0, 2 / 3, 0, 2 / 3, 1 / 3, 0.1 + 0.2))

    @given(theta=strategies.thetas())
    @example(theta=Theta.of((0, 0.5, 0.5, 0.5, 0, 0.5, 1e-128)))
    def test_tells_other_operators_apart(self, theta: Theta) -> None:
        known = {name for name, other in NAMED.items() if other == theta}
        assert len(known) <= 1
        if not theta.is_dense:
            for name in known:
                forms = (NAMED[name].exponents, NAMED[name].swapped().exponents)
                assert any(theta.exponents == pytest.approx(form, abs=EXACT) for form in forms)

    def test_is_not_that_of_the_transposed(self) -> None:
        tall = Theta.parse("(3/4|0|1/4|0|1/2|1/2|0)")
        assert tall != tall.transposed()

    def test_does_not_extend_to_other_types(self) -> None:
        assert NAMED["btt"] != NAMED["btt"].exponents


class TestParse:
    @pytest.mark.parametrize(
        "text",
        [
            "(0.5|0|0.5|0|0.5|0.5|0.25)",
            "0.5|0|0.5|0|0.5|0.5|0.25",
            "0.5,0,0.5,0,0.5,0.5,0.25",
            " ( 1/2 | 0 | 1/2 | 0 | 1/2 | 1/2 | 1/4 ) ",
            "(.5|0.0|5e-1|-0|.5|.5|.25)",
            "btt",
        ],
    )
    def test_reads_every_spelling_of_a_theta(self, text: str) -> None:
        assert Theta.parse(text).exponents == Theta.of(BTT).exponents

    @pytest.mark.parametrize("name", NAMED)
    def test_reads_the_known_names(self, name: str) -> None:
        assert Theta.parse(name) is NAMED[name]

    def test_gives_a_theta_back(self) -> None:
        assert Theta.parse(NAMED["btt"]) is NAMED["btt"]

    @pytest.mark.parametrize("value", [None, 0.5, (0.5, 0, 0.5, 0, 0.5, 0.5, 0)])
    def test_refuses_what_is_no_text(self, value: object) -> None:
        with pytest.raises(FieldError, match=r"^theta: expected seven exponents such as"):
            Theta.parse(value)  # type: ignore[arg-type]  # the point of the test

    def test_reads_a_third_exactly(self) -> None:
        assert Theta.parse("(1/3|1/3|1/3|0|2/3|1/3|0)").exponents == (1 / 3, 1 / 3, 1 / 3, 0, 2 / 3, 1 / 3, 0)

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "()",
            "bt",
            "BTT",
            "0.5|0|0.5|0|0.5|0.5",
            "0.5|0|0.5|0|0.5|0.5|0|0",
            "a|b|c|d|e|f|g",
            "||||||",
            "1/0|0|0|0|0|1|0",
            "0.5|0|0.5|0|0.5|0.5|0\0",
            "\ud800",
        ],
    )
    def test_refuses_other_text_and_shows_the_form_it_wants(self, text: str) -> None:
        with pytest.raises(FieldError, match=r"seven exponents such as \(0\.5\|0\|0\.5\|0\|0\.5\|0\.5\|0\)") as caught:
            Theta.parse(text)
        assert caught.value.field == "theta"
        assert caught.value.got == text

    @pytest.mark.parametrize("number", ["nan", "inf", "1e999", "-0.5", "1e5000000"])
    def test_names_the_exponent_that_is_no_share(self, number: str) -> None:
        with pytest.raises(FieldError, match=r"^alpha: expected a finite exponent between 0 and 1, got "):
            Theta.parse(f"{number}|0|1|0|0|1|0")

    def test_names_the_exponent_that_is_out_of_range(self) -> None:
        with pytest.raises(FieldError, match=r"^rho: expected a finite exponent between 0 and 1, got 1.5"):
            Theta.parse("0.5|0|0.5|0|0.5|0.5|1.5")

    @given(theta=strategies.thetas())
    def test_reads_what_str_writes(self, theta: Theta) -> None:
        came = Theta.parse(str(theta))
        assert came.exponents == pytest.approx(theta.exponents, abs=PRINTED)
        assert str(came) == str(theta)


class TestNormalise:
    @pytest.mark.parametrize("fact", golden.normalisations(), ids=lambda fact: str(fact.weights))
    def test_divides_each_group_by_its_sum(self, fact: golden.Normalisation) -> None:
        assert Theta.normalise(fact.weights).exponents == pytest.approx(fact.exponents, abs=EXACT)

    @pytest.mark.parametrize("fact", golden.normalisations(), ids=lambda fact: str(fact.weights))
    def test_is_needed_where_the_tolerance_ends(self, fact: golden.Normalisation) -> None:
        accepted = True
        try:
            Theta.of(fact.weights)
        except FieldError:
            accepted = False
        assert accepted is fact.accepted

    @pytest.mark.parametrize(
        ("weights", "group"),
        [
            ((0, 0, 0, 0, 1, 1, 0), "input weights"),
            ((1, 1, 1, 0, 0, 0, 0), "output weights"),
            ((2, -1, 1, 0, 1, 1, 0), "input weights"),
            ((1, math.nan, 1, 0, 1, 1, 0), "input weights"),
            ((1, 1, 1, 0, math.inf, 1, 0), "output weights"),
            ((math.inf, -math.inf, 1, 0, 1, 1, 0), "input weights"),
            ((1e308, 1e308, 1e308, 0, 1, 1, 0), "input weights"),
        ],
    )
    def test_refuses_weights_without_a_positive_finite_sum(self, weights: tuple[float, ...], group: str) -> None:
        with pytest.raises(FieldError) as caught:
            Theta.normalise(weights)
        assert caught.value.field == group

    def test_leaves_the_rank_exponent_alone_and_checks_it(self) -> None:
        assert Theta.normalise((2, 1, 1, 1, 2, 1, 0.75)).rho == 0.75
        with pytest.raises(FieldError, match=r"^rho"):
            Theta.normalise((2, 1, 1, 1, 2, 1, 2))

    @given(theta=strategies.thetas())
    def test_changes_nothing_the_second_time(self, theta: Theta) -> None:
        assert theta.normalised().exponents == pytest.approx(theta.exponents, abs=EXACT)

    def test_moves_a_theta_of_the_papers_onto_the_simplex(self) -> None:
        for theta in golden.thetas().values():
            exponents = theta.normalised().exponents
            assert math.fsum(exponents[:3]) == pytest.approx(1, abs=EXACT)
            assert math.fsum(exponents[3:6]) == pytest.approx(1, abs=EXACT)


class TestSymmetries:
    @given(theta=strategies.thetas())
    def test_swapping_exchanges_what_belongs_to_the_two_factors(self, theta: Theta) -> None:
        swapped = theta.swapped()
        assert (swapped.alpha, swapped.beta) == (theta.beta, theta.alpha)
        assert (swapped.delta, swapped.epsilon) == (theta.epsilon, theta.delta)
        assert (swapped.gamma, swapped.phi, swapped.rho) == (theta.gamma, theta.phi, theta.rho)

    @given(theta=strategies.thetas())
    def test_transposing_exchanges_input_with_output_and_a_with_b(self, theta: Theta) -> None:
        a, b, g, d, e, f, r = theta.exponents
        assert theta.transposed().exponents == (e, d, f, b, a, g, r)

    @given(theta=strategies.thetas())
    def test_both_undo_themselves_and_commute(self, theta: Theta) -> None:
        assert theta.swapped().swapped().exponents == theta.exponents
        assert theta.transposed().transposed().exponents == theta.exponents
        assert theta.swapped().transposed().exponents == theta.transposed().swapped().exponents


class TestCanonical:
    @given(theta=strategies.thetas())
    def test_is_the_theta_or_its_swap(self, theta: Theta) -> None:
        assert theta.canonical().exponents in (theta.exponents, theta.swapped().exponents)

    @given(theta=strategies.thetas())
    def test_makes_contracting_with_a_first_the_cheaper_order(self, theta: Theta) -> None:
        canonical = theta.canonical()
        assert canonical.is_canonical
        assert min(canonical.alpha, canonical.epsilon) >= min(canonical.beta, canonical.delta)

    @given(theta=strategies.thetas())
    def test_is_one_form_for_a_theta_and_its_swap(self, theta: Theta) -> None:
        forms = (theta.canonical(), theta.swapped().canonical(), theta.canonical().canonical())
        assert len({form.exponents for form in forms}) == 1

    def test_is_recognised_as_in_the_golden_file(self) -> None:
        assert {row.name: row.theta.is_canonical for row in golden.exponents()} == {
            row.name: row.canonical for row in golden.exponents()
        }


class TestNamed:
    def test_has_one_design_of_each_family(self) -> None:
        assert list(NAMED) == ["dense", "low-rank", "kronecker", "tensor-train", "monarch", "btt"]

    def test_holds_canonical_thetas_that_sum_to_one_exactly(self) -> None:
        for theta in NAMED.values():
            assert theta.canonical().exponents == theta.normalised().exponents == theta.exponents
