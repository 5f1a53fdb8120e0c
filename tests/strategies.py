"""What hypothesis draws from: thetas on the simplices (corners, edges and ties included), axes, points of a cube."""

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from einlayers.dims import Dims
from einlayers.theta import Theta


def thetas() -> SearchStrategy[Theta]:
    """Thetas whose groups sum to 1 exactly: ratios of small integers, where the ties and zeros are, or any floats."""
    weights = st.one_of(st.integers(0, 8), st.floats(0, 1, allow_subnormal=False))
    group = st.tuples(weights, weights, weights).filter(lambda shares: sum(shares) > 0)
    rho = st.one_of(st.sampled_from((0.0, 0.125, 0.25, 0.5, 1.0)), st.floats(0, 1, allow_subnormal=False))
    return st.builds(lambda inputs, outputs, rank: Theta.normalise((*inputs, *outputs, rank)), group, group, rho)


def widths(largest: int = 4096) -> SearchStrategy[int]:
    """Widths of every kind: tiny, prime, powers of two."""
    return st.one_of(st.integers(1, min(64, largest)), st.integers(1, largest))


@st.composite
def full_dims(draw: st.DrawFn, largest: int = 6) -> Dims:
    """Axes that neither pad nor drop a feature."""
    alpha, beta, gamma, delta, epsilon, phi, rho = (draw(st.integers(1, largest)) for _ in range(7))
    return Dims.of((alpha, beta, gamma, delta, epsilon, phi, rho), alpha * beta * gamma, delta * epsilon * phi)


def swap(dims: Dims) -> Dims:
    """The same layer with the names of its two factors exchanged."""
    return Dims(
        alpha=dims.beta,
        beta=dims.alpha,
        gamma=dims.gamma,
        delta=dims.epsilon,
        epsilon=dims.delta,
        phi=dims.phi,
        rho=dims.rho,
        d_in=dims.d_in,
        d_out=dims.d_out,
    )


def transpose(dims: Dims) -> Dims:
    """The layer of the transposed matrices: input and output exchanged, and A with B."""
    return Dims(
        alpha=dims.epsilon,
        beta=dims.delta,
        gamma=dims.phi,
        delta=dims.beta,
        epsilon=dims.alpha,
        phi=dims.gamma,
        rho=dims.rho,
        d_in=dims.d_out,
        d_out=dims.d_in,
    )
